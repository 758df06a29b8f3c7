"""Custom ops: right, known to PyTorch's own checks, and traced by its compiler and its exporter."""

from __future__ import annotations

from pathlib import Path
from shutil import which
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tvm", reason="exports a library")

import tvmops  # noqa: E402
from tests.libraries import default_record, write_log  # noqa: E402
from tvmops.errors import ArgumentError, CallError, NotInLibraryError  # noqa: E402
from tvmops.library.export import export  # noqa: E402
from tvmops.quantize import quantize  # noqa: E402
from tvmops.runtime.load import Library  # noqa: E402
from tvmops.runtime.torch import on_device, packed, register  # noqa: E402
from tvmops.targets import target  # noqa: E402
from tvmops.workloads import Workload  # noqa: E402

F = torch.nn.functional
SPACE = "tvmops_test"
WORK = [
    "matmul m=5 n=37 k=24 bias=true",
    "matmul m=5 n=37 k=24 bias=true activation=relu residual=true",
    "matmul m=5 n=37 k=24 bias=true packed=panels",
    "matmul m=5 n=37 k=24 dtype=bfloat16 out_dtype=float32",
    "matmul_int8 m=5 n=37 k=24 dtype=uint8",
    "matmul_int8 m=5 n=37 k=24 dtype=uint8 trans_b=true b_zero_points=tensor",
    "matmul_int8 m=5 n=37 k=24 dtype=uint8 b_zero_points=channel out_dtype=float32 scales=channel",
    "matmul_weight_only m=5 n=37 k=32 group=8 bits=4",
    "matmul_weight_only m=5 n=37 k=32 group=8 bits=4 bias=true activation=relu",
    "attention batch=1 heads=2 kv_heads=2 q_len=9 kv_len=9 head_dim=8 causal=true",
    "conv2d n=1 h=9 w=7 ci=16 co=18 kh=3 kw=3 padding=1 bias=true packed=winograd4",
    "conv2d n=1 h=9 w=7 ci=16 co=18 kh=3 kw=3 stride=2 padding=0x1x1x0 bias=true",
    "pool2d n=1 h=9 w=7 c=16 kernel=3 stride=2 padding=1 kind=max ceil_mode=true",
    "softmax rows=6 cols=16",
    "layer_norm rows=6 cols=16 weight=true bias=true",
    "layer_norm rows=6 cols=16 residual=true",
    "rms_norm rows=6 cols=16 weight=true",
    "rms_norm rows=6 cols=16 residual=true",
    "conv2d n=1 h=9 w=7 ci=16 co=18 kh=1 kw=2 packed=panels-nchw",
    "activation size=96 activation=gelu",
    "activation size=185 activation=relu",
]
GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Any:
    return torch.rand(shape, generator=GENERATOR)


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder, machine = tmp_path_factory.mktemp("ops") / "library", target("native")
    work = [Workload.parse(text) for text in WORK]
    log = write_log(Path(f"{folder}.jsonl"), *(default_record(each, machine) for each in work))
    return tvmops.load(export(work, machine, [log], folder))


@pytest.fixture(scope="module")
def ops(lib: Library) -> Any:
    return register(lib, SPACE)


A, B, BIAS, RESIDUAL = rand(5, 24), rand(24, 37), rand(37), rand(5, 37)
X, IMAGE, KERNELS, ROWS = rand(5, 32), rand(1, 16, 9, 7), rand(18, 16, 3, 3), rand(2, 3, 16)
BYTES = torch.arange(120, dtype=torch.uint8).reshape(5, 24)
WEIGHTS = torch.arange(-444, 444).to(torch.int8).reshape(24, 37)
ZEROS = torch.arange(37, dtype=torch.int32) - 5
Q, K, V = rand(3, 1, 2, 9, 8)
INTEGERS = quantize(rand(37, 32).numpy(), "int4", axis=1, group=8)
NORM = (16,), rand(16), rand(16)


def weight(lib: Library, op: str, plain: Any) -> dict[str, Any]:
    return packed(lib.pack(op, plain))


# op, arguments, what PyTorch computes of them (None where it has no such op)
CASES: dict[str, Any] = {
    "matmul": (
        lambda lib: ((A, B, BIAS, "relu"), {"residual": RESIDUAL}),
        lambda: F.relu(A @ B + BIAS + RESIDUAL),
    ),
    "matmul packed": (lambda lib: ((A,), {"bias": BIAS, **weight(lib, "matmul", B)}), lambda: A @ B + BIAS),
    "matmul_int8": (lambda lib: ((BYTES, WEIGHTS), {}), lambda: BYTES.int() @ WEIGHTS.int()),
    "matmul of bfloat16 to float32": (
        lambda lib: ((A.bfloat16(), B.bfloat16()), {"out_dtype": "float32"}),
        lambda: A.bfloat16().float() @ B.bfloat16().float(),
    ),
    "matmul_int8 with a zero point": (
        lambda lib: ((BYTES, WEIGHTS.T.contiguous()), {"trans_b": True, "b_zero_point": 3}),
        lambda: BYTES.int() @ (WEIGHTS.int() - 3),
    ),
    "matmul_int8 with zero points": (
        lambda lib: ((BYTES, WEIGHTS, 0, 1.0, BIAS), {"b_zero_points": ZEROS}),
        lambda: (BYTES.float() @ (WEIGHTS.float() - ZEROS)) * BIAS,
    ),
    "matmul_weight_only with bias": (
        lambda lib: (
            (X,),
            {**weight(lib, "matmul_weight_only", INTEGERS), "bias": BIAS, "activation": "relu"},
        ),
        lambda: F.relu(X @ torch.from_numpy(INTEGERS.dequantized()).T + BIAS),
    ),
    "matmul_weight_only": (
        lambda lib: ((X,), weight(lib, "matmul_weight_only", INTEGERS)),
        lambda: X @ torch.from_numpy(INTEGERS.dequantized()).T,
    ),
    "attention": (
        lambda lib: ((Q, K, V), {"causal": True}),
        lambda: F.scaled_dot_product_attention(Q, K, V, is_causal=True),
    ),
    "conv2d": (
        lambda lib: ((IMAGE, KERNELS, KERNELS[:, 0, 0, 0].clone()), {"stride": 2, "padding": [0, 1, 1, 0]}),
        lambda: F.conv2d(F.pad(IMAGE, (1, 0, 0, 1)), KERNELS, KERNELS[:, 0, 0, 0], 2),
    ),
    "conv2d packed": (
        lambda lib: (
            (IMAGE,),
            {"bias": KERNELS[:, 0, 0, 0].clone(), "padding": 1, **weight(lib, "conv2d", KERNELS)},
        ),
        lambda: F.conv2d(IMAGE, KERNELS, KERNELS[:, 0, 0, 0], padding=1),
    ),
    "conv2d packed, 1x2": (  # the shape of the kernel comes with it
        lambda lib: ((IMAGE,), weight(lib, "conv2d", KERNELS[:, :, :1, :2].clone())),
        lambda: F.conv2d(IMAGE, KERNELS[:, :, :1, :2]),
    ),
    "pool2d": (
        lambda lib: ((IMAGE, 3, 2, 1), {"ceil_mode": True}),
        lambda: F.max_pool2d(IMAGE, 3, 2, 1, ceil_mode=True),
    ),
    "softmax": (lambda lib: ((ROWS,), {}), lambda: torch.softmax(ROWS, -1)),
    "layer_norm": (lambda lib: ((ROWS, *NORM[1:]), {}), lambda: F.layer_norm(ROWS, *NORM)),
    "add_layer_norm": (lambda lib: ((ROWS, ROWS + 1), {}), lambda: F.layer_norm(2 * ROWS + 1, NORM[0])),
    "rms_norm": (lambda lib: ((ROWS, NORM[1]), {}), lambda: F.rms_norm(ROWS, NORM[0], NORM[1], 1e-5)),
    "add_rms_norm": (lambda lib: ((ROWS, ROWS + 1), {}), lambda: F.rms_norm(2 * ROWS + 1, NORM[0], eps=1e-5)),
    "activation": (lambda lib: (("gelu", ROWS), {}), lambda: F.gelu(ROWS)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_op_computes_as_pytorch_does_and_passes_its_checks(lib: Library, ops: Any, case: str) -> None:
    make, expected = CASES[case]
    arguments, attributes = make(lib)
    op = getattr(ops, case.split()[0])
    found = op(*arguments, **attributes)
    first = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(first, expected(), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(op.default, arguments, attributes)


def test_a_packed_weight_moves_to_a_device(lib: Library) -> None:
    weight = lib.pack("matmul", B)
    moved = on_device(weight, "cpu")
    assert isinstance(moved.array, torch.Tensor) and moved.shape == weight.shape
    torch.testing.assert_close(lib.matmul(A, moved, BIAS), A @ B + BIAS)
    assert on_device(weight, "meta").array.device.type == "meta"


def test_nothing_is_missing(ops: Any, lib: Library) -> None:
    from tvmops.runtime.calls import CALLS

    assert set(CALLS) - {"matmul_fp8"} == {case.split()[0] for case in CASES} & set(CALLS)


def test_what_runs_on_gpus_alone_is_traced_here(ops: Any) -> None:
    a, b = (torch.empty(rows, 32, dtype=torch.float8_e4m3fn, device="meta") for rows in (5, 16))
    scale = torch.empty(1, device="meta")
    found = ops.matmul_fp8(a, b, scale, scale), ops.matmul_fp8(a, b, scale, scale, "float32")
    assert [(tuple(each.shape), each.dtype) for each in found] == [
        ((5, 16), torch.bfloat16),
        ((5, 16), torch.float32),
    ]


def model(ops: Any) -> Any:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            y = ops.matmul(x * 2, B, BIAS)
            return ops.activation("relu", y - 20).sum(dim=0)

    return Model()


@pytest.mark.filterwarnings("ignore:library")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(not which("g++"), reason="no C++ compiler")),
    ],
)
def test_torch_compile_traces_through_in_one_graph(ops: Any, backend: str) -> None:
    compiled = torch.compile(model(ops), fullgraph=True, backend=backend)
    for rows in (5, 6, 7):  # from the second on with a symbolic size
        x = rand(rows, 24)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), F.relu(2 * x @ B + BIAS - 20).sum(dim=0))


def test_torch_export_keeps_the_op_and_runs(ops: Any) -> None:
    program = torch.export.export(model(ops), (A,))
    assert any(str(node.target) == f"{SPACE}.matmul.default" for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(A), F.relu(2 * A @ B + BIAS - 20).sum(dim=0))


def test_a_gradient_is_refused(ops: Any) -> None:
    a = A.clone().requires_grad_()
    with pytest.raises(CallError, match=r"matmul: argument 'a' is a tensor that requires grad; .*no_grad"):
        ops.matmul(a, B, BIAS)
    with pytest.raises(CallError, match="requires grad"):
        ops.matmul(a * 2, B, BIAS)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not ops.matmul(a, B, BIAS).requires_grad


def test_a_compiled_gradient_is_refused(ops: Any) -> None:
    compiled = torch.compile(model(ops), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="requires grad"):
        compiled(A.clone().requires_grad_())


def test_a_namespace_holds_one_library(lib: Library, ops: Any) -> None:
    assert register(lib, SPACE) is ops
    for name in (SPACE, "aten", "not a name"):
        with pytest.raises(ArgumentError, match=f"'namespace' is '{name}'"):
            register(tvmops.load(lib.path), name)


def test_attention_takes_what_sequences_are_as_a_method_does(ops: Any) -> None:
    """There are no kernels for it here: the error says what would be needed."""
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    with pytest.raises(NotInLibraryError, match="lengths=true"):
        ops.attention(Q, K, V, lengths=offsets[:1])
    rows, bounds = rand(9, 2, 8), {"max_seqlen_q": 5, "max_seqlen_k": 5}
    with pytest.raises(NotInLibraryError, match="layout=thd total_q=9 total_k=9"):
        ops.attention(rows, rows, rows, cu_seqlens_q=offsets, cu_seqlens_k=offsets, **bounds)
