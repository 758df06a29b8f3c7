"""Products of 8-bit integers on GPUs with mma.sync; `kernels.gemm_int8` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import extent, known
from tvmops.schedules.cuda.gemm_mma import MmaGemm, is_chained, knobs_of, tiles_of
from tvmops.schedules.cuda.kernels.gemm_int8 import Int8Kernel, Int8Product
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload

_AMPERE = 80
_MOST_REGISTERS = 136  # of a thread, for sums and what is read ahead


class Int8Gemm(MmaGemm):
    """To the machine a product of 16 bits and half the k: as many bytes, as much time."""

    name = "cuda.gemm_int8"
    version = 1
    vectors = (16, 8, 4, 1)

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "matmul_int8"
            and target.gpu is not None
            and target.gpu.compute >= _AMPERE
            and workload["packed"] == PLAIN
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        return Space(self.name, whole.knobs, lambda c: whole.is_legal(c) and _has_registers(c, workload))

    def in_halves(self, workload: Workload) -> Workload:
        k = workload["k"] if workload["k"] == ANY else max(1, known(workload, "k") // 2)
        dims = {"m": workload["m"], "n": workload["n"], "k": k}
        return make_workload("matmul", **dims, dtype="bfloat16", trans_b=workload["trans_b"])

    def choices(self) -> tuple[dict[str, int], ...]:
        return _DEFAULTS

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


# What `default` chooses from, by the estimate; smallest tiles first. Few warps share what they load.
_DEFAULTS = (
    knobs_of(16, 32, 1, 2, 2),
    knobs_of(16, 64, 1, 4, 4),
    knobs_of(32, 64, 2, 2, 4),
    knobs_of(64, 64, 2, 2, 3),
    knobs_of(64, 128, 2, 2, 3),
    knobs_of(128, 64, 2, 2, 3),
    knobs_of(128, 128, 2, 2, 3),
    knobs_of(128, 128, 2, 4, 3),
)
