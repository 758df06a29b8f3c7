"""Products of 8-bit integers on GPUs with mma.sync; `kernels.gemm_int8` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import extent, known
from tvmops.schedules.cuda.gemm_mma import MmaGemm, is_chained, is_legal, tiles_of
from tvmops.schedules.cuda.kernels.gemm_int8 import Int8Kernel, Int8Product
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload

_AMPERE = 80
_MOST_REGISTERS = 136  # of a thread, for sums and what is read ahead
_VECTORS = (16, 8, 4, 1)  # bytes of a copy


class Int8Gemm(MmaGemm):
    """To the machine a product of 16 bits and half the k: as many bytes, as much time."""

    name = "cuda.gemm_int8"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "matmul_int8"
            and target.gpu is not None
            and target.gpu.compute >= _AMPERE
            and workload["packed"] == PLAIN
        )

    def space(self, workload: Workload, target: Target) -> Space:
        pairs = _in_pairs(workload)
        a, b = (_vectors(workload[dim]) for dim in _row_dims(workload))
        knobs = (
            *(knob for knob in super().space(pairs, target).knobs if "vector" not in knob.name),
            Knob("a_vector", a),
            Knob("b_vector", b),
        )
        return Space(self.name, knobs, lambda c: is_legal(c, pairs, target) and _has_registers(c, workload))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        rows, kernels = sorted(set(_row_dims(workload))), []
        for vector in (16, 1):
            multiples = dict.fromkeys(rows, vector) if vector > 1 else {}
            for kernel in super().generic(_in_pairs(workload), target)[:2]:
                config = kernel.config.replace(a_vector=vector, b_vector=vector)
                kernels.append(GenericKernel(kernel.ranges, config, multiples))
        return kernels

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_in_pairs(workload), target, config)

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = _product_of(self.kernel_workload(workload))
        return Int8Kernel(product, tiles_of(config), is_chained(target)).module()


def _has_registers(config: Config, workload: Workload) -> bool:
    """Say whether the sums of b's columns and of a's rows find room beside those of the product."""
    tiles = tiles_of(config)
    of_rows = tiles.wm // 8 if workload["b_zero_points"] != "none" else 0
    across = 0 if workload["trans_b"] else 4
    return tiles.registers + tiles.wn // 8 + of_rows + across <= _MOST_REGISTERS


def _product_of(workload: Workload) -> Int8Product:
    m, n, k = (extent(workload, name) for name in "mnk")
    return Int8Product(
        m=m,
        n=n,
        k=k,
        dtype=str(workload["dtype"]),
        trans_b=bool(workload["trans_b"]),
        b_zero_points=str(workload["b_zero_points"]),
        out_dtype=str(workload["out_dtype"]),
        by_channel=workload["scales"] == "channel",
        bias=bool(workload["bias"]),
        activation=str(workload["activation"]),
    )


def _row_dims(workload: Workload) -> tuple[str, str]:
    """Return the dimensions along which the rows of a and of b lie."""
    return "k", "k" if workload["trans_b"] else "n"


def _vectors(row: object) -> tuple[int, ...]:
    """Return what copies can take at once where rows have `row` bytes: the most; both ends if unknown."""
    if not isinstance(row, int):
        return (16, 1)
    return (next(vector for vector in _VECTORS if row % vector == 0),)


def _in_pairs(workload: Workload) -> Workload:
    """Return the product of 16 bits that moves the same bytes."""
    if workload.op == "matmul":
        return workload
    k = workload["k"] if workload["k"] == ANY else max(1, known(workload, "k") // 2)
    dims = {"m": workload["m"], "n": workload["n"], "k": k}
    return make_workload("matmul", **dims, dtype="bfloat16", trans_b=workload["trans_b"])
