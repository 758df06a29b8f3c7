"""Softmax, LayerNorm and RMSNorm on GPUs, one read and one write; `kernels.rows` says how."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvm import IRModule

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.row_values import WARP
from tvmops.schedules.cuda.kernels.rows import RowKernel, RowShape, RowTiles
from tvmops.schedules.cuda.row_memory import parts_of, vector_width
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.dtypes import bits_of
from tvmops.signatures.softmax import LAST
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_NORMS = ("layer_norm", "rms_norm")
_THREADS = (32, 64, 128, 256, 512, 1024)
_MOST_THREADS = 1024  # of a block
_MOST_VALUES = 64  # of a row, in the registers of a thread
_OTHER_REGISTERS = 26  # of a thread
_WANTED_VALUES = 32  # enough reads in flight, and registers for several blocks side by side
_WANTED_BLOCK = 128
_SHARED_BYTES, _LOOSE_BYTES = 32768, 8192  # of a row, at least
_MANY_ROWS = 1024
HOPPER = 90  # from here on blocks of a cluster reach each other's memory


class CudaRows(Template):
    name = "cuda.rows"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or workload.op not in ("softmax", *_NORMS) or workload["cols"] == ANY:
            return False
        along_rows = workload.op in _NORMS or workload["axis"] == LAST
        if not along_rows or _is_for_long_rows(workload, target):
            return False
        return bool(_plain_configs(workload, target))

    def space(self, workload: Workload, target: Target) -> Space:
        factors = workload.op in _NORMS and bool(workload["weight"] or workload["bias"])
        knobs = (
            Knob("threads", _THREADS),
            Knob("rows", (1, 2, 4, 8)),
            Knob("stream", (False, True)),
            Knob("resident", (0, 1, 2, 3, 4, 6, 8)),
            Knob("keep", (False, True) if factors else (False,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        (cols,) = workload.dims("cols")
        plain = _plain_configs(workload, target)
        enough = [each for each in plain if each.number("threads") * _WANTED_VALUES >= cols]
        least = min(enough or plain, key=lambda each: (each not in enough, each.number("threads")))
        beside = least.replace(rows=max(1, _WANTED_BLOCK // least.number("threads")))
        return beside if is_legal(beside, workload, target) else least

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # a row's registers must be counted

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: the bytes, over the share of the bandwidth that bytes in flight sustain."""
        assert target.gpu is not None
        tiles, (cols,) = tiles_of(config, target), workload.dims("cols")
        rows = workload.dims("rows")[0] if workload["rows"] != ANY else 4096
        blocks = math.ceil(rows / tiles.rows)
        side_by_side = tiles.resident or max(
            1, target.gpu.block_registers // (tiles.block * _registers(workload, config))
        )
        busy = min(blocks, side_by_side * target.cores)
        size = bits_of(str(workload["dtype"])) // 8
        in_flight = busy * tiles.rows * cols * size * (1.5 if tiles.stays else 1.0)
        rate = min(1.0, in_flight / (target.gpu.bandwidth * 1.5e-6))
        waves = blocks / (math.ceil(blocks / busy) * busy) if tiles.stays else 1.0
        return 2 * rows * cols * size / (target.gpu.bandwidth * rate * waves)

    def kernel_workload(self, workload: Workload) -> Workload:
        return of_any_rows(workload)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return RowKernel(row_shape(workload), tiles_of(config, target)).module()


def of_any_rows(workload: Workload) -> Workload:
    """Return the workload with `*` for how many rows there are, and rows of a mask if it has one."""
    masked = workload.op == "softmax" and workload["mask_rows"] != 0
    return workload.replace(rows=ANY, **({"mask_rows": ANY} if masked else {}))


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, (cols,) = tiles_of(config, target), workload.dims("cols")
    width = _width(workload)
    steps = -(-cols // (width * tiles.threads))
    kept = tiles.keep * cols * bits_of(str(workload["dtype"])) // 8 * _factors(workload)
    return (
        tiles.block <= _MOST_THREADS
        and steps * width <= _MOST_VALUES
        and (tiles.threads == WARP or tiles.threads * width < 2 * cols)
        and tiles.stays >= tiles.keep
        and max(tiles.resident, 1) * (kept + 1024) <= target.gpu.shared_bytes
        and max(tiles.resident, 1) * tiles.block * _registers(workload, config) <= target.gpu.block_registers
        and tiles.resident * tiles.block <= 2048
    )


def _is_for_long_rows(workload: Workload, target: Target) -> bool:
    """Say whether rows are so few that blocks had better share one, or many long ones begin anywhere."""
    assert target.gpu is not None
    if target.gpu.compute < HOPPER or workload["rows"] == ANY:
        return False
    rows, cols = workload.dims("rows", "cols")
    nbytes = cols * bits_of(str(workload["dtype"])) // 8
    if rows <= target.cores // 8:
        return nbytes >= _SHARED_BYTES
    return rows >= _MANY_ROWS and nbytes >= _LOOSE_BYTES and _width(workload) == 1


def tiles_of(config: Config, target: Target) -> RowTiles:
    return RowTiles(
        threads=config.number("threads"),
        rows=config.number("rows"),
        stream=bool(config["stream"]),
        resident=config.number("resident"),
        keep=bool(config["keep"]),
        multiprocessors=target.cores,
    )


def _plain_configs(workload: Workload, target: Target) -> list[Config]:
    """Return the legal configs of one row a block that stays for no other; none: rows are too long."""
    configs = [
        Config.of(threads=threads, rows=1, stream=True, resident=0, keep=False) for threads in _THREADS
    ]
    return [config for config in configs if is_legal(config, workload, target)]


def _width(workload: Workload) -> int:
    return vector_width(str(workload["dtype"]), workload.dims("cols")[0])


def _factors(workload: Workload) -> int:
    return int(bool(workload["weight"])) + int(bool(workload["bias"])) if workload.op in _NORMS else 0


def _registers(workload: Workload, config: Config) -> int:
    """Guess the registers of a thread; where they do not suffice, compiling says so."""
    width = _width(workload)
    steps = -(-workload.dims("cols")[0] // (width * config.number("threads")))
    added = workload["mask_rows"] != 0 if workload.op == "softmax" else bool(workload["residual"])
    raw = steps * parts_of(str(workload["dtype"]), width) * (1 + added)
    values = steps * width
    return _OTHER_REGISTERS + values + (raw if config.number("resident") or added else 0)


def row_shape(workload: Workload) -> RowShape:
    flags: Mapping[str, bool]
    mask_rows: Extent = 0
    if workload.op == "softmax":
        flags = {name: bool(workload[name]) for name in ("log", "scaled")}
        mask_rows = extent(workload, "mask_rows")
    else:
        flags = {name: bool(workload[name]) for name in ("weight", "bias", "residual")}
    return RowShape(
        op=workload.op,
        rows=extent(workload, "rows"),
        cols=extent(workload, "cols"),
        dtype=str(workload["dtype"]),
        mask_rows=mask_rows,
        **flags,
    )
