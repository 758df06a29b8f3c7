"""What libraries for ARM CPUs are tested with, and these libraries: each is made once a test run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.libraries import default_record, generic_kernels_for, write_log
from tests.shared import made_once
from tvmops.library.export import export
from tvmops.targets import target
from tvmops.workloads import Workload

PLAIN = "matmul m=33 n=65 k=17"  # tiles, and a rest in each dimension
TUNED = [
    PLAIN,
    "matmul m=20 n=33 k=17 trans_a=true trans_b=true bias=true activation=gelu batch=3",
    "matmul m=17 n=33 k=31 dtype=bfloat16",
    "matmul m=3 n=33 k=31 dtype=bfloat16 packed=words",
    "matmul m=5 n=9 k=19 dtype=bfloat16 trans_a=true trans_b=true batch=2 activation=silu bias=true",
    "matmul_int8 m=17 n=33 k=31",
    "matmul_int8 m=7 n=33 k=29 dtype=int8 packed=words",
    "matmul_int8 m=3 n=33 k=37 dtype=int8 packed=words b_zero_points=channel",
    "matmul_int8 m=9 n=17 k=30 trans_b=true b_zero_points=tensor out_dtype=int8 bias=true",
    "matmul_weight_only m=3 n=64 k=64",
    "matmul_weight_only m=1 n=33 k=40 group=32 bits=8",
    "matmul_weight_only m=5 n=33 k=64 group=32 bits=8 zero_points=true dtype=bfloat16",
    "conv2d n=1 h=9 w=11 ci=8 co=16 kh=3 kw=3 padding=1",
    "conv2d n=1 h=9 w=11 ci=16 co=16 kh=3 kw=3 padding=1 groups=16",
    "conv2d n=1 h=9 w=11 ci=8 co=16 kh=3 kw=3 padding=1 layout=NHWC stride=2 bias=true activation=relu",
    "conv2d n=1 h=11 w=9 ci=8 co=12 kh=3 kw=3 dilation=2 groups=2",
    "pool2d n=1 h=9 w=11 c=5 kernel=3 stride=2 padding=1",
    "pool2d n=1 h=7 w=7 c=9 kernel=7 kind=average layout=NHWC",
    "softmax rows=5 cols=33",
    "softmax rows=5 cols=33 dtype=bfloat16",
    "softmax rows=3 cols=7 inner=5 axis=middle",
    "layer_norm rows=5 cols=33",
    "layer_norm rows=5 cols=33 dtype=bfloat16 residual=true",
    "rms_norm rows=5 cols=33",
    "attention batch=1 heads=2 kv_heads=2 q_len=33 kv_len=33 head_dim=32",
    "attention batch=1 heads=2 kv_heads=2 q_len=1 kv_len=65 head_dim=32",
    "attention batch=1 heads=4 kv_heads=2 q_len=17 kv_len=17 head_dim=32 causal=true dtype=bfloat16",
    "activation size=1001 activation=tanh",
    "activation size=1001 activation=gelu dtype=bfloat16",
]
FORMS = [  # other templates, and other forms of what those above do
    "matmul m=17 n=40 k=31 packed=panels bias=true activation=relu residual=true",
    "matmul m=2 n=40 k=33 trans_b=true",
    "matmul m=2 n=300 k=200",
    "matmul m=9 n=33 k=21 trans_a=true activation=tanh",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 packed=panels-nchw residual=true",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 layout=NHWC packed=panels-nhwc activation=silu",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 packed=winograd2",
    "conv2d n=1 h=9 w=11 ci=32 co=20 kh=3 kw=3 padding=1 layout=NHWC packed=winograd4 bias=true",
    "conv2d n=1 h=9 w=11 ci=16 co=16 kh=3 kw=3 groups=16 layout=NHWC stride=2 activation=relu6",
    "conv2d n=1 h=6 w=7 ci=16 co=20 kh=1 kw=1 activation=hardswish",
    "pool2d n=1 h=9 w=11 c=5 kernel=2 stride=2 kind=average",
    "softmax rows=5 cols=33 log=true",
    "softmax rows=4 cols=33 scaled=true mask_rows=2",
    "layer_norm rows=5 cols=33 weight=true bias=true residual=true",
    "rms_norm rows=5 cols=33 weight=true residual=true dtype=bfloat16",
    "attention batch=1 heads=4 kv_heads=2 q_len=1 kv_len=65 head_dim=64",
    "attention batch=2 heads=4 kv_heads=1 q_len=3 kv_len=70 head_dim=80 causal=true dtype=bfloat16",
    "attention batch=1 heads=2 kv_heads=2 q_len=19 kv_len=21 head_dim=32 mask=bool",
    "activation size=1001 activation=silu",
    "activation size=1001 activation=gelu_tanh",
]
OTHER = [  # the generic kernels answer
    "matmul m=5 n=7 k=9",
    "matmul m=9 n=31 k=7 dtype=bfloat16",
    "matmul m=2 n=31 k=7 dtype=bfloat16 packed=words",
    "matmul_int8 m=5 n=9 k=13",
    "matmul_int8 m=2 n=9 k=13 dtype=int8 packed=words",
    "matmul_weight_only m=2 n=32 k=32",
    "conv2d n=2 h=7 w=9 ci=5 co=7 kh=3 kw=3 padding=1",
    "softmax rows=3 cols=101",
    "layer_norm rows=3 cols=101",
    "attention batch=1 heads=2 kv_heads=2 q_len=17 kv_len=29 head_dim=32",
    "activation size=77 activation=tanh",
]
OTHER_FORMS = [  # the same, of the other forms
    "matmul m=3 n=21 k=19 packed=panels bias=true activation=relu residual=true",
    "matmul m=3 n=9 k=21 trans_b=true",
    "matmul m=3 n=21 k=19 trans_a=true activation=tanh",
    "conv2d n=1 h=7 w=8 ci=5 co=12 kh=3 kw=3 padding=1 packed=panels-nchw residual=true",
    "conv2d n=1 h=7 w=8 ci=5 co=12 kh=3 kw=3 padding=1 layout=NHWC packed=panels-nhwc activation=silu",
    "conv2d n=1 h=7 w=8 ci=16 co=16 kh=3 kw=3 groups=16 layout=NHWC stride=2 activation=relu6",
    "conv2d n=1 h=7 w=8 ci=5 co=12 kh=1 kw=1 activation=hardswish",
    "pool2d n=1 h=7 w=8 c=3 kernel=2 stride=2 kind=average",
    "softmax rows=3 cols=21 log=true",
    "softmax rows=4 cols=21 scaled=true mask_rows=2",
    "layer_norm rows=3 cols=21 weight=true bias=true residual=true",
    "rms_norm rows=3 cols=21 weight=true residual=true dtype=bfloat16",
    "attention batch=1 heads=4 kv_heads=2 q_len=1 kv_len=21 head_dim=64",
    "attention batch=1 heads=2 kv_heads=2 q_len=9 kv_len=22 head_dim=32 mask=bool",
    "activation size=77 activation=silu",
    "activation size=77 activation=gelu_tanh",
]
WHOLE = ("cortex-a53", "neoverse-n1", "neoverse-v1", "neoverse-v2", "apple-m4")  # one of each set of features
EVERY_FORM = ("cortex-a53", "neoverse-v2")  # the least and the most of them


def tuned_for(name: str) -> list[Workload]:
    """Return what the library for a target is tuned for."""
    texts = [PLAIN] if name not in WHOLE else [*TUNED, *FORMS] if name in EVERY_FORM else TUNED
    return [Workload.parse(text) for text in texts]


def others_for(name: str) -> list[Workload]:
    """Return what the generic kernels of the library for a target are to answer."""
    texts = OTHER[:1] if name not in WHOLE else [*OTHER, *OTHER_FORMS] if name in EVERY_FORM else OTHER
    return [Workload.parse(text) for text in texts]


def library_for(name: str, factory: pytest.TempPathFactory) -> Path:
    """Return the library for a target; that with the most features has all generic kernels."""
    work, machine = tuned_for(name), target(name)

    def make(folder: Path) -> None:
        log = write_log(folder / "log.jsonl", *(default_record(each, machine) for each in work))
        with nullcontext() if name == EVERY_FORM[-1] else generic_kernels_for(others_for(name)):
            export(work, machine, [log], folder / name)

    return made_once(factory, f"arm-{name}", make) / name
