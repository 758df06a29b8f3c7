"""Products of float32 on CUDA cores of Hopper whose rows begin anywhere; `kernels.gemm_float32_boxes` says how."""

from __future__ import annotations

from tvmops.schedules.cuda.gemm_float32_boxes import ALIGNED, Float32Boxes, ragged_of
from tvmops.schedules.cuda.gemm_mma import row_dims
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

_COPIED_BYTES = 8  # of each element: read and written
_START_SECONDS = 1.5e-6  # of a second kernel


class Float32Padded(Float32Boxes):
    """`Float32Boxes` on copies of those factors that the copy engine can't take."""

    name = "cuda.gemm_float32_padded"
    version = 1

    def covers_rows(self, ragged: tuple[str, ...]) -> bool:
        return len(ragged) > 0

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but those along rows: they say what is copied."""
        ragged, rows = ragged_of(workload), row_dims(workload)
        sizes = {dim: 1 if name in ragged else ALIGNED for name, dim in zip("ab", rows)}
        return super().kernel_workload(workload).replace(**sizes)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing what is copied."""
        assert target.gpu is not None
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        sizes, shared = {"a": m * k, "b": k * n}, str(workload["shared"])
        elements = sum(sizes[each] * (1 if shared == each else batch) for each in ragged_of(workload))
        copies = _COPIED_BYTES * elements / target.gpu.bandwidth
        return super().estimate(workload, target, config) + copies + _START_SECONDS
