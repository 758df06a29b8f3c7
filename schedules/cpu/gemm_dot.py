"""Matrix products of short values on instructions that multiply words of them.

The nest, outermost first, with the knob that sets each block:

    task            split_m x split_n   run side by side; they share nothing
      column block  nc panels           of nr = nv vectors; words of b are packed here  (pack_b)
        stretch     kc words            of k; all of it where b is not packed beforehand
        tile        mr rows             of a, whose words are packed here
          panel     mr x nr             accumulators in registers, summed over all of k, by ku words

A word holds two or four values, so that a panel of b for a thousand k fits the L2 cache, and k is
summed in one go. A longer one, of a b that was packed beforehand, is summed in stretches (kc) while
the words of the next are asked for (ahead). Where b is not packed, its words are put together as it
is read, which serves few rows. A b that is given as (n, k) is transposed where it is packed, in
squares of vectors. Where b was packed beforehand, words are read as they lie, at the speed of
memory; for a matrix instruction they are put side by side, in passing or, for many rows, once for a
column block.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from math import ceil

from tvm import IRModule

from tvmops.schedules.cpu.dot import Dot
from tvmops.schedules.cpu.dot_nest import DotBlocking, DotNest
from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_FEW_ROWS = 4  # up to this many, b is read once and not packed
_TYPICAL_BATCH = 12
_LAUNCH_CYCLES = 10_000  # to start threads and to wait for the last


class GemmDot(Template):
    """What the templates of this family share."""

    each: int  # values of k in a word

    @abstractmethod
    def dots(self, target: Target) -> tuple[Dot, ...]:
        """Return how `target` can multiply words, the way for many rows first."""

    @abstractmethod
    def nest(self, workload: Workload, target: Target, dot: Dot, blocking: DotBlocking) -> DotNest:
        """Return the loops for `workload`."""

    def space(self, workload: Workload, target: Target) -> Space:
        m, n = workload.dims("m", "n")
        panels = -(-n // target.vector_width("int32"))
        splits = _splits(target.cores)
        knobs = [
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 24) if mr <= m)),
            Knob("nv", tuple(nv for nv in (1, 2, 3, 4, 6, 8) if nv <= panels or nv == 1)),
            Knob("nc", (*(nc for nc in (2, 4, 8, 16, 32, 64) if nc < panels), ALL)),
            Knob("ku", (1, 2, 4, 8)),
            Knob("pack_b", self._pack_b(workload, target)),
            Knob("split_m", splits),
            Knob("split_n", splits),
        ]
        if _batch(workload) > 1:
            knobs.append(Knob("split_batch", splits))
        if len(dots := self.dots(target)) > 1:
            knobs.append(Knob("dot", tuple(dot.name for dot in dots)))
        if self._may_stretch(workload, target):
            knobs += [Knob("kc", (256, 512, 1024, ALL)), Knob("ahead", (False, True))]
        return Space(self.name, tuple(knobs), lambda config: self._is_legal(config, workload, target))

    def _may_stretch(self, workload: Workload, target: Target) -> bool:
        """Say whether k may be summed in stretches: b lies packed, in many panels that are long."""
        m, n, k = workload.dims("m", "n", "k")
        packed = workload["packed"] != PLAIN and all(dot.side == dot.rows == 1 for dot in self.dots(target))
        plain_sums = dict(workload.items).get("b_zero_points", "none") == "none"
        return packed and plain_sums and m > _FEW_ROWS and n >= 512 and k >= 512 * self.each

    def _is_legal(self, config: Config, workload: Workload, target: Target) -> bool:
        """Say whether `config` fits the machine; the only statement of the template's limits."""
        knobs = DotBlocking.of(config)
        m, n, k = workload.dims("m", "n", "k")
        width, dot = target.vector_width("int32"), self._dot(target, knobs.dot)
        panels = -(-n // (knobs.nv * width))
        packed = knobs.pack_b * 4 * -(-k // self.each) * (knobs.nc or panels) * knobs.nv * width
        return (
            knobs.mr * knobs.nv + knobs.nv * dot.parts + 1 <= target.vector_registers
            and knobs.mr % dot.side == 0
            and (dot.side > 1 or not knobs.pack_b or workload["packed"] == PLAIN)
            and (knobs.kc == ALL or knobs.nc != ALL)
            and (knobs.kc != ALL or not knobs.ahead)
            and knobs.split_m <= -(-m // knobs.mr)
            and knobs.split_n <= panels
            and knobs.split_batch <= _batch(workload)
            and knobs.split_m * knobs.split_n * knobs.split_batch <= 2 * target.cores
            and packed <= max(2 * target.l2_bytes, target.l3_bytes // 2)
            and knobs.mr * knobs.nv * knobs.ku * dot.parts <= 192  # beyond, compiling takes long, for nothing
        )

    def default(self, workload: Workload, target: Target) -> Config:
        m, n, k = workload.dims("m", "n", "k")
        wanted = self._wanted(m, n, k, target, self._pack_b(workload, target), _batch(workload)).as_dict()
        if self._may_stretch(workload, target):
            wanted |= {"kc": 512, "ahead": True, "nc": 4}
        values = {knob.name: knob.values for knob in self.space(workload, target).knobs}
        return Config.of(**{name: _fit(values[name], wanted[name]) for name in wanted if name in values})

    def _wanted(self, m: int, n: int, k: int, target: Target, pack_b: tuple[bool, ...], batch: int) -> Config:
        dots = self.dots(target)
        dot = dots[-1] if m <= _FEW_ROWS else dots[0]
        width, parts = target.vector_width("int32"), dot.parts
        vectors, is_small = -(-n // width), batch * m * n * k < 500_000
        nv = 2 if m > _FEW_ROWS and dot.rows == 1 else 4 if parts == 1 else 2
        nv = min(nv, max(1, vectors))
        most = 12 if dot.rows == 1 else 4  # of short vectors: as many columns
        mr = min(m, (target.vector_registers - 1) // nv - parts, most) // dot.side * dot.side
        panels, tiles = -(-vectors // nv), -(-m // mr)
        cores = 1 if is_small else target.cores
        splits = _splits(target.cores)
        split_batch = max(parts for parts in splits if parts <= min(cores, batch))
        cores //= split_batch
        split_n = max(parts for parts in splits if parts <= min(cores, panels))
        split_m = max(parts for parts in splits if parts <= min(cores // split_n, tiles))
        panel_bytes = 4 * -(-k // self.each) * nv * width
        fitting = max((nc for nc in (2, 4, 8, 16) if nc * panel_bytes <= target.l2_bytes // 2), default=2)
        return Config.of(
            mr=mr,
            nv=nv,
            nc=ALL if m <= _FEW_ROWS else fitting,
            ku=2,
            pack_b=pack_b[-1] and (m > _FEW_ROWS or pack_b[0]),
            split_m=split_m,
            split_n=split_n,
            split_batch=split_batch,
            **({"dot": dot.name} if len(dots) > 1 else {}),
        )

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        pack_b, batch = self._pack_b(workload, target), 1 if _batch(workload) == 1 else _TYPICAL_BATCH
        small = {"m": (1, 64), "n": (1, 128), "k": (1, 128)}  # too small to start threads
        return [
            GenericKernel(ranges, self._wanted(*sizes, target, pack_b, batch))
            for ranges, sizes in (
                (small, (8, 48, 128)),
                ({"m": (1, 1)}, (1, 4096, 4096)),
                ({"m": (2, _FEW_ROWS)}, (_FEW_ROWS, 4096, 4096)),
                ({}, (1024, 1024, 1024)),
            )
        ]

    def symbolic_space(self, space: Space, pattern: Workload) -> Space:
        if ANY not in (pattern["m"], pattern["k"]):
            return space
        return replace(
            space, is_legal=lambda config: not DotBlocking.of(config).kc and space.is_legal(config)
        )

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Count cycles of the busiest core: multiplications or loads, packing, edges, starting threads."""
        knobs = DotBlocking.of(config)
        m, n, k = workload.dims("m", "n", "k")
        width, dot = target.vector_width("int32"), self._dot(target, knobs.dot)
        parts, words = dot.parts, -(-k // self.each)
        panels = ceil(ceil(n / (knobs.nv * width)) / knobs.split_n)
        tiles = ceil(ceil(m / knobs.mr) / knobs.split_m)
        products = parts * knobs.mr * knobs.nv / dot.side  # by each word of k
        step = max(products, parts * knobs.mr + knobs.nv, 5) + 2 / knobs.ku
        if workload["packed"] == PLAIN and not knobs.pack_b:
            step += knobs.nv * 3 * self.each
        step = max(step, 4 * width * knobs.nv / self._bytes_a_cycle(workload, target, knobs))
        cycles = tiles * panels * (words * step + 4 * knobs.mr * knobs.nv + 20)
        blocks = -(-panels // (knobs.nc or panels))
        cycles += tiles * blocks * knobs.mr * (words * parts / width * 2 + 20)
        cycles += knobs.pack_b * panels * words * knobs.nv * 3 * self.each
        tasks = knobs.split_m * knobs.split_n * knobs.split_batch
        cycles *= -(-tasks // target.cores) * ceil(_batch(workload) / knobs.split_batch)
        return cycles + (tasks > 1) * _LAUNCH_CYCLES

    def _bytes_a_cycle(self, workload: Workload, target: Target, knobs: DotBlocking) -> float:
        """Guess how fast words of b arrive: from memory, the L3 cache, or the L2 cache of a core."""
        m, n, k = workload.dims("m", "n", "k")
        words = -(-k // self.each)
        if 4 * words * n > target.l3_bytes and knobs.mr >= m:
            return 4
        if not self._may_stretch(workload, target):
            return 24
        block_bytes = 4 * (knobs.kc or words) * (knobs.nc * knobs.nv * target.vector_width("int32") or n)
        return (14 if block_bytes > target.l2_bytes else 24) + 2 * knobs.ahead

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        knobs = DotBlocking.of(config)
        return self.nest(workload, target, self._dot(target, knobs.dot), knobs).module()

    def _dot(self, target: Target, name: str) -> Dot:
        dots = self.dots(target)
        return next((dot for dot in dots if dot.name == name), dots[0])

    def _pack_b(self, workload: Workload, target: Target) -> tuple[bool, ...]:
        """Return whether b may be packed by the kernel; what was given transposed must be."""
        if workload["packed"] != PLAIN:
            return (False, True) if self.dots(target)[0].side > 1 else (False,)
        return (True,) if workload["trans_b"] else (False, True)


def _batch(workload: Workload) -> int:
    """Return how many matrices there are; some where that is not known."""
    batch = dict(workload.items).get("batch", 1)
    return batch if isinstance(batch, int) else _TYPICAL_BATCH


def _splits(cores: int) -> tuple[int, ...]:
    """Return the divisors of `cores` and of twice as many."""
    return tuple(parts for parts in range(1, 2 * cores + 1) if (2 * cores) % parts == 0)


def _fit(values: tuple[int | str | bool, ...], wanted: int | str | bool) -> int | str | bool:
    """Return `wanted`; where it is beyond the extent, `ALL` of that or the next value below."""
    if wanted in values:
        return wanted
    return ALL if ALL in values else max(value for value in values if int(value) <= int(wanted))
