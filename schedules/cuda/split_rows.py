"""Long rows of softmax, LayerNorm and RMSNorm, shared by the blocks of a cluster; `kernels.rows` says how."""

from __future__ import annotations

from tvmops.schedules.cuda.rows import CudaRows, is_legal
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_HOPPER = 90  # clusters
_SHORTEST = 8192  # values of a row; those of shorter ones suffice a block
_THREADS = (128, 256, 512, 1024)
_WANTED_THREADS = 256
_SPLITS = (2, 4, 8)


class SplitRows(CudaRows):
    """One row a cluster."""

    name = "cuda.split_rows"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.compute < _HOPPER or not self.is_along_rows(workload):
            return False
        return workload.dims("cols")[0] >= _SHORTEST and bool(_configs(workload, target))

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("threads", _THREADS),
            Knob("rows", (1,)),
            Knob("stream", (False, True)),
            Knob("resident", (0,)),
            Knob("keep", (False,)),
            Knob("splits", _SPLITS),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        """As many blocks as may be, of few threads: most of them find room side by side."""

        def order(config: Config) -> tuple[bool, int, int]:
            threads, splits = config.number("threads"), config.number("splits")
            return threads < _WANTED_THREADS, -splits, threads

        return min(_configs(workload, target), key=order)


def _configs(workload: Workload, target: Target) -> list[Config]:
    choices = [
        Config.of(threads=threads, rows=1, stream=True, resident=0, keep=False, splits=splits)
        for threads in _THREADS
        for splits in _SPLITS
    ]
    return [config for config in choices if is_legal(config, workload, target)]
