"""GEMM for CPUs with vector registers: one loop nest, blocked as in GotoBLAS.

The nest, outermost first (K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix
Multiplication, ACM TOMS 34(3), 2008), with the knob that sets each block:

    task            split_m x split_n   run side by side; they share nothing, so no barriers
                    x split_k           (each adds up a stretch of k apart, for small m and n)
      column block  nc panels           of nr = nv vectors
        k block     kc                  b is packed here, [panel][k][nr]        (pack_b)
          row block mc tiles            of mr rows; a is packed here, [row][k]  (pack_a)
            panel
              tile                      mr x nr accumulators in registers, k unrolled by ku

Shapes need not divide: rows beyond m are computed from row m - 1 and not stored, columns
beyond n are masked. A dimension may be symbolic.

With m = 1 the same nest streams b once: kc is small, nc takes all panels, nothing is packed.
"""

from __future__ import annotations

from tvm import IRModule, tirx

from tvmops.schedules.cpu.emit import ALL, Extent
from tvmops.schedules.cpu.gemm_cost import Shape, cost, features
from tvmops.schedules.cpu.gemm_nest import Blocking, GemmNest
from tvmops.schedules.template import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload


class CpuGemm(Template):
    name = "cpu.gemm"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.kind != "cpu":
            return False
        sizes = {"m": workload["m"], "n": workload["n"], "k": workload["k"], "dtype": "float32"}
        return workload == make_workload("matmul", **sizes)

    def space(self, workload: Workload, target: Target) -> Space:
        m, n, k = workload.dims("m", "n", "k")
        width = target.vector_width(str(workload["dtype"]))
        panels = -(-n // width)
        knobs = (
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20) if mr <= m)),
            Knob("nv", tuple(nv for nv in (1, 2, 3, 4, 6, 8) if nv <= panels or nv == 1)),
            Knob("kc", _up_to(k, (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096))),
            Knob("nc", _up_to(panels, (1, 2, 4, 8, 16, 32, 64))),
            Knob("mc", _up_to(m, (1, 2, 4, 8, 16, 32, 64))),
            Knob("ku", tuple(ku for ku in (1, 2, 4, 8) if ku <= k)),
            Knob("pack_a", (False, True)),
            Knob("pack_b", (False, True)),
            Knob("split_m", _splits(target.cores)),
            Knob("split_n", _splits(target.cores)),
            Knob("split_k", _splits(target.cores)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        m, n, k = workload.dims("m", "n", "k")
        wanted = _default(m, n, k, target, target.vector_width(str(workload["dtype"])))
        values = {knob.name: knob.values for knob in self.space(workload, target).knobs}
        return Config(tuple((name, _fit(values[name], value)) for name, value in wanted.items))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        width = target.vector_width(str(workload["dtype"]))
        small = {"m": (1, 64), "n": (1, 128), "k": (1, 128)}  # too small to start threads or to pack for
        return [
            GenericKernel(small, _default(48, 48, 48, target, width)),
            GenericKernel({"m": (1, 2)}, _default(1, 4096, 4096, target, width)),
            GenericKernel({"m": (3, _FEW_ROWS)}, _default(_FEW_ROWS, 4096, 4096, target, width)),
            GenericKernel({}, _default(1024, 1024, 1024, target, width)),
        ]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        m, n, k = (_extent(workload, name) for name in ("m", "n", "k"))
        dtype = str(workload["dtype"])
        return GemmNest(m, n, k, dtype, target.vector_width(dtype), Blocking.of(config)).module()

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return cost(Shape.of(workload, target), target, Blocking.of(config))

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return features(Shape.of(workload, target), target, Blocking.of(config))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    knobs = Blocking.of(config)
    m, n, k = workload.dims("m", "n", "k")
    width = target.vector_width(str(workload["dtype"]))
    tiles, panels = -(-m // knobs.mr), -(-n // (knobs.nv * width))
    registers = knobs.mr * knobs.nv + min(knobs.nv, 2) + 1  # accumulators, b, one broadcast of a
    packed_b = knobs.pack_b * (knobs.nc or panels) * knobs.nv * width
    packed_a = knobs.pack_a * (knobs.mc or tiles) * knobs.mr
    packed = 4 * (knobs.kc or k) * (packed_a + packed_b)
    return (
        registers <= target.vector_registers
        and knobs.split_m <= tiles
        and knobs.split_n <= panels
        and knobs.split_k <= max(1, k // 64)
        and knobs.split_m * knobs.split_n * knobs.split_k <= 2 * target.cores
        and packed <= max(target.l2_bytes, target.l3_bytes // 2)
        and knobs.mr * knobs.nv * knobs.ku <= 128  # beyond, compiling takes long and gains nothing
    )


_FEW_ROWS = 16  # up to this many, b is read once and not packed


def _default(m: int, n: int, k: int, target: Target, width: int) -> Config:
    """Choose blocks from the register file and the caches."""
    if m <= _FEW_ROWS:
        return _streaming(m, n, k, target, width)
    nv = 2
    mr = min(m, (target.vector_registers - nv - 1) // nv, 8)
    cores = _useful_cores(m, n, k, target)
    panels = -(-n // (nv * width))
    split_n = max(parts for parts in _splits(target.cores) if parts <= min(cores, panels))
    return Config.of(
        mr=mr,
        nv=nv,
        kc=512,
        nc=8,
        mc=1,
        ku=4,
        pack_a=m * n * k > 1 << 20,
        pack_b=m > 2 * mr and not _is_small(m, n, k),
        split_m=min(cores // split_n, -(-m // mr)),
        split_n=split_n,
        split_k=1,
    )


def _streaming(m: int, n: int, k: int, target: Target, width: int) -> Config:
    """Choose blocks for a product that is bound by reading b: whole rows of it, in order.

    A few rows of b at a time are added to all of c, which stays in the caches. With one or
    two rows of a each core takes a stretch of k, since hardware prefetches along a row: two
    cores that share its columns can read at half the speed of one that reads it whole.
    """
    cores = _useful_cores(m, n, k, target)
    mr = min(m, 4)
    panels = -(-n // width)
    nv = max(nv for nv in (1, 2, 3, 4, 6) if mr * nv + 3 <= target.vector_registers and nv <= panels)
    few = m <= 2
    along_k = max(parts for parts in _splits(target.cores) if parts <= min(cores, max(1, k // 64)))
    along_n = max(parts for parts in _splits(target.cores) if parts <= min(cores, -(-panels // nv)))
    return Config.of(
        mr=mr,
        nv=min(nv, 4) if few else nv,
        kc=4 if few else 16,
        nc=ALL,
        mc=ALL,
        ku=4,
        pack_a=False,
        pack_b=False,
        split_m=1,
        split_n=1 if few else along_n,
        split_k=along_k if few else 1,
    )


def _useful_cores(m: int, n: int, k: int, target: Target) -> int:
    return 1 if _is_small(m, n, k) else target.cores


def _is_small(m: int, n: int, k: int) -> bool:
    """True where starting threads, or packing, costs more than it saves."""
    return 2 * m * n * k < 500_000


def _up_to(extent: int, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values below `extent`, and `ALL` of it."""
    return (*(value for value in values if value < extent), ALL)


def _splits(cores: int) -> tuple[int, ...]:
    """Return the divisors of `cores` and of twice as many."""
    return tuple(parts for parts in range(1, 2 * cores + 1) if (2 * cores) % parts == 0)


def _fit(values: tuple[int | str | bool, ...], wanted: int | str | bool) -> int | str | bool:
    """Return `wanted`; where it is beyond the extent, `ALL` of that or the next value below."""
    if wanted in values:
        return wanted
    return ALL if ALL in values else max(value for value in values if int(value) <= int(wanted))


def _extent(workload: Workload, name: str) -> Extent:
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")


__all__ = ["CpuGemm", "is_legal"]
