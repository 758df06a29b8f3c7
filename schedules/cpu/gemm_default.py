"""Blockings that are good without tuning, from the register file and the caches."""

from __future__ import annotations

from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.cpu.gemm_frame import Blocking
from tvmops.schedules.template import GenericKernel
from tvmops.signatures.layouts import PLAIN, Panels
from tvmops.targets import Target
from tvmops.workloads import Workload

FEW_ROWS = 16  # up to this many, b is read once


def default(workload: Workload, target: Target) -> Blocking:
    """Choose a blocking for a workload of known sizes; a block may be larger than its extent."""
    m, n, k = workload.dims("m", "n", "k")
    if m > FEW_ROWS or 4 * n * k <= target.l2_bytes // 2:
        return _reusing(workload, target)
    if workload["packed"] == PLAIN and not workload["trans_b"]:
        return _streaming(workload, target)
    return _by_panels(workload, target)


def generic(pattern: Workload, target: Target) -> list[GenericKernel]:
    """Choose kernels for all sizes, each by those that it is meant for."""
    small = {"m": (1, 64), "n": (1, 128), "k": (1, 128)}  # too small to start threads or to pack for
    meant: list[tuple[dict[str, tuple[int, int]], tuple[int, int, int]]] = [
        (small, (32, 32, 48)),
        ({"m": (1, 2)}, (1, 4096, 4096)),
        ({"m": (3, FEW_ROWS)}, (FEW_ROWS, 4096, 4096)),
        ({}, (1024, 1024, 1024)),
    ]
    kernels = []
    for ranges, (m, n, k) in meant:
        sizes = {"m": m, "n": n, "k": k}
        if pattern["batch"] != 1:
            sizes["batch"] = 12
        kernels.append(GenericKernel(ranges, default(pattern.replace(**sizes), target).config()))
    return kernels


def splits(cores: int) -> tuple[int, ...]:
    """Return the divisors of `cores` and of twice as many."""
    return tuple(parts for parts in range(1, 2 * cores + 1) if (2 * cores) % parts == 0)


def _reusing(workload: Workload, target: Target) -> Blocking:
    """Choose a panel of b that stays in the caches while many rows pass by.

    One panel at a time is packed, right before its use, while the next one is fetched. A
    transposed a, which costs more to read in place, is packed once for several panels.
    """
    m, n, k, batch = workload.dims("m", "n", "k", "batch")
    mr, nv = _tile(workload, target)
    cores = _useful_cores(workload, target)
    split_batch = _largest_split(target, min(cores, batch))
    cores //= split_batch
    split_n = _largest_split(target, min(cores, _panels(workload, target, nv)))
    turned = workload["trans_a"] is True and not _is_small(m * n * k)
    packs = workload["trans_b"] or (m > 2 * mr and not _is_small(m * n * k))
    return Blocking(
        mr=mr,
        nv=nv,
        kc=256 if turned else 512,
        nc=8 if turned else 1,
        mc=4 if turned else ALL,
        ku=4,
        pack_a=turned,
        pack_b=bool(packs) and workload["packed"] == PLAIN,
        split_m=min(cores // split_n, -(-m // mr)),
        split_n=split_n,
        split_k=1,
        split_batch=split_batch,
        ahead=workload["packed"] == PLAIN,
    )


def _streaming(workload: Workload, target: Target) -> Blocking:
    """Choose blocks for a product that is bound by reading b: whole rows of it, in order.

    A few rows of b at a time are added to all of c, which stays in the caches. With up to four
    rows of a each core takes a stretch of k, since hardware prefetches along a row: two cores
    that share its columns can read at half the speed of one that reads it whole.
    """
    m, k, batch = workload.dims("m", "k", "batch")
    cores = _useful_cores(workload, target)
    split_batch = _largest_split(target, min(cores, batch))
    cores //= split_batch
    mr = min(m, 4)
    panels = _panels(workload, target, 1)
    nv = max(nv for nv in (1, 2, 3, 4, 6) if mr * nv + 3 <= target.vector_registers and nv <= panels)
    few = m <= 4
    along_k = _largest_split(target, min(cores, max(1, k // 64))) if batch == 1 else 1
    along_n = _largest_split(target, min(cores, -(-panels // nv)))
    return Blocking(
        mr=mr,
        nv=min(nv, 2) if few else min(nv, 4),
        kc=8 if few else 16,
        nc=ALL,
        mc=ALL,
        ku=4,
        pack_a=False,
        pack_b=False,
        split_m=1,
        split_n=1 if few else along_n,
        split_k=along_k if few else 1,
        split_batch=split_batch,
    )


def _by_panels(workload: Workload, target: Target) -> Blocking:
    """Choose blocks for few rows of a, and a b that is packed, or transposed where it is used.

    What was packed is read from one end to the other; accumulators stay in registers for all of
    k. A transposed b is packed a narrow panel at a time.
    """
    (batch,), turned = workload.dims("batch"), workload["trans_b"] is True
    (m,) = workload.dims("m")
    mr, nv = (min(m, 6 if target.vector_registers < 32 else 8), 2) if turned else _tile(workload, target)
    cores = _useful_cores(workload, target)
    split_batch = _largest_split(target, min(cores, batch))
    return Blocking(
        mr=mr,
        nv=nv,
        kc=1024 if turned else ALL,
        nc=1,
        mc=ALL,
        ku=4,
        pack_a=False,
        pack_b=turned,
        split_m=1,
        split_n=_largest_split(target, min(cores // split_batch, _panels(workload, target, nv))),
        split_k=1,
        split_batch=split_batch,
        ahead=turned,
    )


def _tile(workload: Workload, target: Target) -> tuple[int, int]:
    """Choose mr and nv: the tile that computes c with the fewest cycles, padding included."""
    m, n = workload.dims("m", "n")
    width = target.vector_width(str(workload["dtype"]))
    by_lane = target.multiplies_by_lane and not workload["trans_a"]  # then each row of a holds a register

    def cycles(tile: tuple[int, int]) -> float:
        mr, nv = tile
        loads = (0.15 * mr + 0.5 * nv) / (width if by_lane else 1)  # mostly hidden
        step = max(mr * nv, 8 if by_lane else 4) + loads  # a sum waits for the one before
        return -(-m // mr) * -(-n // (nv * width)) * step

    tiles = [
        (mr, nv)
        for nv in (4, 3, 2, 1)
        for mr in range(8, 0, -1)  # each row of a has a pointer of its own, beside those of the loops
        if mr * nv + nv + (mr if by_lane else 1) <= target.vector_registers
        and mr <= m
        and nv * width < n + width
    ]
    if workload["packed"] != PLAIN:
        tiles = [(mr, nv) for mr, nv in tiles if nv * width % Panels("float32").columns == 0]
    return min(tiles, key=cycles)


def _panels(workload: Workload, target: Target, nv: int) -> int:
    (n,) = workload.dims("n")
    return -(-n // (nv * target.vector_width(str(workload["dtype"]))))


def _useful_cores(workload: Workload, target: Target) -> int:
    m, n, k, batch = workload.dims("m", "n", "k", "batch")
    return 1 if _is_small(batch * m * n * k) else target.cores


def _is_small(products: int) -> bool:
    """True where starting threads, or packing, costs more than it saves."""
    return products < 250_000


def _largest_split(target: Target, most: int) -> int:
    return max(parts for parts in splits(target.cores) if parts <= most)
