"""GEMM for CPUs with vector registers: one loop nest, blocked as in GotoBLAS.

The nest, outermost first (K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix
Multiplication, ACM TOMS 34(3), 2008), with the knob that sets each block:

    task            split_batch         run side by side; they share nothing, so no barriers
                    x split_m x split_n
                    x split_k           (each adds up a stretch of k apart, for small m and n)
      matrix                            of the task's part of the batch
        column block  nc panels         of nr = nv vectors
          k block     kc                b is packed here, [panel][k][nr]        (pack_b)
            row block mc tiles          of mr rows; a is packed here, [row][k]  (pack_a)
              panel
                tile                    mr x nr accumulators in registers, k unrolled by ku

Shapes need not divide: rows beyond m are computed from row m - 1 and not stored, columns
beyond n are masked. A dimension may be symbolic. While one block of b is multiplied, the next
may be fetched (ahead): with few rows, packing would else wait for memory.

A transposed b is transposed where it is packed, in squares of vectors. A b that was packed
beforehand is read as it lies: a panel of its layout is one or more vectors wide, and a tile
takes neighbouring ones.

With m = 1 the same nest streams b once: kc is small, nc takes all panels, nothing is packed.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.cpu.gemm_cost import Shape, cost, features
from tvmops.schedules.cpu.gemm_default import default, generic, splits
from tvmops.schedules.cpu.gemm_frame import Blocking
from tvmops.schedules.cpu.gemm_nest import GemmNest
from tvmops.schedules.cpu.gemm_operands import Product
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.layouts import PLAIN, Panels
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuGemm(Template):
    name = "cpu.gemm"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul" and target.kind == "cpu" and workload["dtype"] == "float32"

    def space(self, workload: Workload, target: Target) -> Space:
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        panels = -(-n // target.vector_width("float32"))
        knobs = [
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20) if mr <= m)),
            Knob("nv", tuple(nv for nv in (1, 2, 3, 4, 6, 8) if nv <= panels or nv == 1)),
            Knob("kc", _up_to(k, (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096))),
            Knob("nc", _up_to(panels, (1, 2, 4, 8, 16, 32, 64))),
            Knob("mc", _up_to(m, (1, 2, 4, 8, 16, 32, 64))),
            Knob("ku", tuple(ku for ku in (1, 2, 4, 8) if ku <= k)),
            Knob("pack_a", (False, True)),
            Knob("pack_b", _pack_b(workload)),
            Knob("split_m", splits(target.cores)),
            Knob("split_n", splits(target.cores)),
            Knob("split_k", splits(target.cores)),
        ]
        if batch > 1:
            knobs.append(Knob("split_batch", splits(target.cores)))
        if _has_ahead(workload):
            knobs.append(Knob("ahead", (False, True)))
        return Space(self.name, tuple(knobs), lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        wanted = default(workload, target).config()
        values = {knob.name: knob.values for knob in self.space(workload, target).knobs}
        return Config(tuple((name, _fit(values[name], wanted[name])) for name in values))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return generic(workload, target)

    def symbolic_space(self, space: Space, pattern: Workload) -> Space:
        return replace(space, is_legal=lambda config: is_bounded(config, pattern) and space.is_legal(config))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return GemmNest(Product.of(workload, target), Blocking.of(config)).module()

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return cost(Shape.of(workload, target), target, Blocking.of(config))

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return features(Shape.of(workload, target), target, Blocking.of(config))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    knobs = Blocking.of(config)
    m, n, k, batch = workload.dims("m", "n", "k", "batch")
    width = target.vector_width("float32")
    tiles, panels = -(-m // knobs.mr), -(-n // (knobs.nv * width))
    registers = knobs.mr * knobs.nv + min(knobs.nv, 2) + 1  # accumulators, b, one broadcast of a
    packed_b = knobs.pack_b * (knobs.nc or panels) * knobs.nv * width
    packed_a = knobs.pack_a * (knobs.mc or tiles) * knobs.mr
    packed = 4 * (knobs.kc or k) * (packed_a + packed_b)
    return (
        registers <= target.vector_registers
        and knobs.split_m <= tiles
        and knobs.split_n <= panels
        and knobs.split_k <= (max(1, k // 64) if batch == 1 else 1)
        and knobs.split_batch <= batch
        and knobs.split_m * knobs.split_n * knobs.split_k * knobs.split_batch <= 2 * target.cores
        and packed <= max(target.l2_bytes, target.l3_bytes // 2)
        and knobs.mr * knobs.nv * knobs.ku <= 128  # beyond, compiling takes long and gains nothing
        and knobs.pack_b >= knobs.ahead
        # a tile takes whole panels of a packed b
        and (workload["packed"] == PLAIN or knobs.nv * width % Panels("float32").columns == 0)
    )


def is_bounded(config: Config, pattern: Workload) -> bool:
    """Say whether what `config` packs has a size, though some of the shape's are `*`."""
    knobs = Blocking.of(config)
    m, n, k = (isinstance(pattern[name], int) for name in ("m", "n", "k"))
    kc, mc, nc = (size != ALL for size in (knobs.kc, knobs.mc, knobs.nc))
    return (not knobs.pack_a or ((m or mc) and (k or kc))) and (not knobs.pack_b or ((n or nc) and (k or kc)))


def _pack_b(workload: Workload) -> tuple[bool, ...]:
    if workload["packed"] != PLAIN:
        return (False,)
    return (True,) if workload["trans_b"] else (False, True)


def _has_ahead(workload: Workload) -> bool:
    """True where b comes from memory and is packed."""
    n, k = workload.dims("n", "k")
    return workload["packed"] == PLAIN and 4 * n * k >= 2 << 20


def _up_to(extent: int, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values below `extent`, and `ALL` of it."""
    return (*(value for value in values if value < extent), ALL)


def _fit(values: tuple[int | str | bool, ...], wanted: int | str | bool) -> int | str | bool:
    """Return `wanted`; where it is beyond the extent, `ALL` of that or the next value below."""
    if wanted in values:
        return wanted
    return ALL if ALL in values else max(value for value in values if int(value) <= int(wanted))


__all__ = ["CpuGemm", "is_bounded", "is_legal"]
