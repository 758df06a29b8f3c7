"""What this machine can do at best: measured FMA rate and memory bandwidth.

Both are measured with kernels built for the target, on as many threads as it has cores,
and cached a machine in $TVMOPS_CACHE (by default ~/.cache/tvmops).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.machine import cache_folder, this_machine
from tvmops.measure.build import compile_object
from tvmops.measure.link import link
from tvmops.measure.local import LocalMeasurer
from tvmops.schedules.cpu.emit import broadcast, lanes, registers
from tvmops.targets import Target

_CHAINS = 12  # independent sums: more than latency times issue width of any core here
_STEPS = 100_000
_STREAM_ELEMENTS = 1 << 26  # 256 MiB, beyond any cache
_ROUNDS = 4
_SAMPLES = 5


@dataclass(frozen=True)
class Peak:
    """Rates of the whole machine, all cores at work."""

    flops: float  # float32 operations a second, a fused multiply-add counted as two
    bandwidth: float  # bytes a second, read once from memory

    def seconds(self, flops: float, nbytes: float) -> float:
        """Return the roofline: the least time for this work."""
        return max(flops / self.flops, nbytes / self.bandwidth)


class Timer(Protocol):
    """Who times kernels on a machine."""

    machine: str

    def time_kernel(self, library: Path, elements: Sequence[int], samples: int) -> tuple[float, ...]: ...


def machine_peak(target: Target, measurer: Timer | None = None) -> Peak:
    """Return the peak under `target` of this machine, or of that which `measurer` times on.

    It is measured at most once a machine.
    """
    key = _key(target, measurer.machine if measurer else this_machine().fingerprint)
    known = _read_cache()
    if key not in known:
        known[key] = asdict(_measure(target, measurer))
        _write_cache(known)
    return Peak(**known[key])


def forget_peak(target: Target) -> None:
    """Have the peak of this machine under `target` measured again when it is next asked for."""
    known = _read_cache()
    known.pop(_key(target, this_machine().fingerprint), None)
    _write_cache(known)


def _key(target: Target, machine: str) -> str:
    return f"{target.name}: {machine}"


def _measure(target: Target, measurer: Timer | None) -> Peak:
    width = target.vector_width("float32")
    own = None if measurer else LocalMeasurer(target, builders=1)
    runner = measurer or own
    assert runner is not None
    try:
        with TemporaryDirectory() as folder:
            fma, read = Path(folder, "fma.so"), Path(folder, "read.so")
            _build(_fma_module(target.cores, width), target, fma)
            _build(_read_module(target.cores, width), target, read)
            each = _CHAINS * width * target.cores
            best_fma = best_read = float("inf")
            for _ in range(_ROUNDS):  # apart in time: a shared machine is slow for stretches
                best_fma = min(best_fma, *runner.time_kernel(fma, [each, 2], _SAMPLES))
                best_read = min(best_read, *runner.time_kernel(read, [_STREAM_ELEMENTS, each], _SAMPLES))
    finally:
        if own:
            own.close()
    return Peak(flops=2 * _STEPS * each / best_fma, bandwidth=4 * _STREAM_ELEMENTS / best_read)


def _build(module: IRModule, target: Target, path: Path) -> None:
    compile_object(module, target, path.with_suffix(".o"))
    link([path.with_suffix(".o")], path, bare=True, arch=target.arch)


def _fma_module(cores: int, width: int) -> IRModule:
    """main(x, factors): x = x * factors[0] + factors[1], `_STEPS` times, in registers."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        x_arg, f_arg = T.arg("x", T.handle()), T.arg("factors", T.handle())
        x = T.match_buffer(x_arg, (cores * _CHAINS * width,), "float32", align=4)
        factors = T.match_buffer(f_arg, (2,), "float32", align=4)
        with T.parallel(cores) as core:
            sums = registers((_CHAINS * width,), "float32")
            for chain in range(_CHAINS):
                at = lanes(chain * width, width)
                T.buffer_store(sums, x[lanes((core * _CHAINS + chain) * width, width)], [at])
            with T.serial(_STEPS):
                for chain in range(_CHAINS):
                    at = lanes(chain * width, width)
                    step = sums[at] * broadcast(factors[0], width) + broadcast(factors[1], width)
                    T.buffer_store(sums, step, [at])
            for chain in range(_CHAINS):
                at = lanes(chain * width, width)
                T.buffer_store(x, sums[at], [lanes((core * _CHAINS + chain) * width, width)])
    return IRModule({"main": builder.get()})


def _read_module(cores: int, width: int) -> IRModule:
    """main(x, sums): add up all of x, each core a stretch of its own."""
    row = _CHAINS * width
    rows = _STREAM_ELEMENTS // cores // row
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        x_arg, s_arg = T.arg("x", T.handle()), T.arg("sums", T.handle())
        x = T.match_buffer(x_arg, (_STREAM_ELEMENTS,), "float32", align=4)
        out = T.match_buffer(s_arg, (cores * row,), "float32", align=4)
        with T.parallel(cores) as core:
            sums = registers((row,), "float32")
            for chain in range(_CHAINS):
                T.buffer_store(
                    sums, broadcast(tirx.const(0, "float32"), width), [lanes(chain * width, width)]
                )
            with T.serial(rows) as i:
                for chain in range(_CHAINS):
                    at = lanes(chain * width, width)
                    T.buffer_store(
                        sums, sums[at] + x[lanes((core * rows + i) * row + chain * width, width)], [at]
                    )
            for chain in range(_CHAINS):
                at = lanes(chain * width, width)
                T.buffer_store(out, sums[at], [lanes(core * row + chain * width, width)])
    return IRModule({"main": builder.get()})


def _cache_file() -> Path:
    return cache_folder() / "peaks.json"


def _read_cache() -> dict[str, dict[str, float]]:
    try:
        table: dict[str, dict[str, float]] = json.loads(_cache_file().read_text())
        return table
    except (OSError, ValueError):
        return {}


def _write_cache(table: dict[str, dict[str, float]]) -> None:
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(table, indent=1))
        path.with_suffix(".new").replace(path)
    except OSError:
        pass  # it is a cache; the next run measures again
