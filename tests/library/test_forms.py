"""Each op on CPUs, with each dtype and each activation, by each template, through an exported library.

Generic kernels are left out, of which other tests have some of each template.
"""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmops
from tests.libraries import no_generic_kernels, record_by, write_log
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.ops import op_of
from tvmops.runtime.calls import CALL_ARGUMENTS
from tvmops.schedules import TEMPLATES, Template
from tvmops.signatures import SIGNATURES
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.signatures.attention import MASK_DIMS
from tvmops.signatures.dtypes import decode
from tvmops.signatures.fields import Flag
from tvmops.targets import Target, target
from tvmops.workloads import Workload

TARGETS = [name for name in ("x86-64-v3", "native") if not target(name).missing(this_machine())]
CPU = [each for each in TEMPLATES if ".schedules.cpu." in each.path]
DTYPES = ("dtype=float32", "dtype=bfloat16")

EVERY_ACTIVATION: dict[str, tuple[str, ...]] = {  # each op that has any, with each of its dtypes
    "matmul m=4 n=18 k=20 bias=true residual=true": DTYPES,
    "matmul_int8 m=5 n=18 k=23 bias=true": (
        "dtype=uint8 out_dtype=float32 scales=channel",
        "dtype=int8 out_dtype=int8 packed=words",
    ),
    "matmul_weight_only m=3 n=18 k=64 group=32 bits=4 bias=true": DTYPES,
    "conv2d n=1 h=7 w=9 ci=6 co=19 kh=3 kw=3 padding=1 bias=true": ("layout=NCHW residual=true",),
    "activation size=37": DTYPES,
}

OTHERS: dict[str, tuple[tuple[str, ...], ...]] = {  # by op: words to be combined, each with each
    "matmul m=4 n=18 k=20": (
        ("trans_b=true bias=true", "packed=panels", "batch=2", "batch=2 shared=a trans_a=true"),
        ("dtype=float32",),
    ),
    "matmul m=5 n=18 k=20": (
        (
            "batch=2",
            "batch=2 shared=b trans_a=true",
            "packed=words out_dtype=float32 bias=true bias_dtype=float32",
        ),
        ("dtype=bfloat16",),
    ),
    "matmul_int8 m=5 n=18 k=23": (
        ("dtype=uint8", "dtype=int8"),
        ("packed=none", "packed=words", "b_zero_points=tensor", "b_zero_points=channel trans_b=true"),
        ("out_dtype=int32", "out_dtype=uint8 activation=relu"),
    ),
    "matmul_weight_only m=3 n=18 k=64 group=32": (
        ("bits=4", "bits=4 zero_points=true", "bits=8 zero_points=true"),
        ("x_bits=8", "x_bits=16", "x_bits=24"),
        DTYPES,
    ),
    "conv2d n=1 h=7 w=9 ci=17 co=19 kh=3 kw=3 padding=1 bias=true activation=gelu": (
        ("residual=false", "packed=panels-nchw", "packed=winograd4", "packed=winograd2"),
    ),
    "conv2d n=1 h=7 w=9 ci=17 co=19 kh=3 kw=3 padding=1 bias=true layout=NHWC activation=gelu": (
        ("residual=true", "packed=panels-nhwc", "packed=winograd4", "packed=winograd2"),
    ),
    "conv2d n=1 h=7 w=9 ci=6 co=6 kh=3 kw=3 padding=1 groups=6": (("layout=NCHW", "layout=NHWC"),),
    "attention batch=2 heads=4 kv_heads=2 kv_len=33 head_dim=16": (
        ("q_len=3", "q_len=20"),
        ("layout=blhd", "causal=true align=top-left", "mask=float32 mask_dims=hqk", "mask=bool mask_dims=bk"),
        DTYPES,
    ),
    "attention batch=2 heads=2 kv_heads=2 q_len=20 kv_len=33 head_dim=16 mask=float32": (
        tuple(f"mask_dims={dims}" for dims in MASK_DIMS),
    ),
    "softmax rows=6 cols=37": (("log=true", "scaled=true", "mask_rows=2"), DTYPES),
    "softmax rows=2 cols=5 inner=17 axis=middle": (("log=false", "log=true"), DTYPES),
    "layer_norm rows=6 cols=37": (("weight=false", "weight=true bias=true residual=true"), DTYPES),
    "rms_norm rows=6 cols=37": (("weight=false", "weight=true bias=true residual=true"), DTYPES),
    "pool2d n=1 h=9 w=20 c=6 kernel=3 stride=2 padding=1": (
        ("kind=max", "kind=average", "kind=average count_include_pad=false", "kind=max ceil_mode=true"),
        ("layout=NCHW", "layout=NHWC"),
    ),
}


def table() -> list[Workload]:
    texts = [
        f"{op} {form} activation={activation}"
        for op, forms in EVERY_ACTIVATION.items()
        for form in forms
        for activation in ACTIVATIONS
        if not (op.startswith("activation") and activation == "none")
    ]
    texts += [" ".join((op, *words)) for op, choices in OTHERS.items() for words in product(*choices)]
    return [Workload.parse(text) for text in texts]


WORK = table()
MISSING = {  # of what the signatures offer, on CPUs
    *((op, "dtype", "float16") for op in SIGNATURES),
    ("attention", "layout", "thd"),
    ("attention", "lengths", True),
    ("conv2d", "dtype", "bfloat16"),
    ("matmul", "precision", "tf32"),
}


@pytest.fixture(params=TARGETS)
def machine(request: pytest.FixtureRequest) -> Target:
    return target(request.param)


@pytest.mark.parametrize("template", CPU, ids=lambda template: template.name)
def test_a_library_answers_as_the_reference_does(template: Template, machine: Target, tmp_path: Path) -> None:
    work = [each for each in WORK if template.covers(each, machine)]
    if not work:
        pytest.skip(f"{template.name} does not cover any of them on {machine.name}")
    records = [record_by(template, each, machine) for each in work]
    log = write_log(tmp_path / "log.jsonl", *records)
    with no_generic_kernels():
        library = tvmops.load(export(work, machine, [log], tmp_path / "library"))
    for each in work:
        inputs = op_of(each).random_inputs(each, seed=3)
        answer = library.explain(str(each))
        assert (answer.tier, answer.kernel.template) == ("exact", template.label), each
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = getattr(library, each.op)(**CALL_ARGUMENTS[each.op](each, inputs))
        check(each, made if isinstance(made, tuple) else (made,), inputs)


def check(work: Workload, made: tuple[Any, ...], inputs: list[Any]) -> None:
    op = op_of(work)
    decoded = (decode(array, spec.dtype) for array, spec in zip(inputs, op.inputs(work)))
    for result, spec, exact in zip(made, op.outputs(work), op.reference(work, *decoded), strict=True):
        error = np.abs(decode(result, spec.dtype).reshape(exact.shape) - exact).max()
        assert error <= op.tolerance(work), work


def test_every_choice_of_every_field_is_among_them() -> None:
    for op in {work.op for work in WORK}:
        some = [work for work in WORK if work.op == op]
        for field in SIGNATURES[op].fields:
            values = (False, True) if isinstance(field.kind, Flag) else getattr(field.kind, "values", ())
            missing = {(op, field.name, value) for value in values} - {
                (op, field.name, work[field.name]) for work in some
            }
            assert missing <= MISSING


def test_every_dtype_meets_every_activation() -> None:
    for op in (text.split()[0] for text in EVERY_ACTIVATION):
        some = [work for work in WORK if work.op == op]
        met = {(work["dtype"], work["activation"]) for work in some}
        assert met >= set(product({work["dtype"] for work in some}, ACTIVATIONS[1:]))
