"""Few rows of a by a 16-bit b at the speed of memory; `kernels.stream_floats` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.few_rows import has_few_rows
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.kernels.stream_floats import FloatStream, form_of
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.streaming import Stream, StreamTemplate, tiles_of
from tvmops.signatures import ANY
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
MOST_ROWS = 16  # 32 took longer than cuBLAS on an H100


def is_streamed(workload: Workload, target: Target) -> bool:
    """True for so few rows of a by a 16-bit b that b is best streamed, on a GPU that can multiply them so."""
    gpu = target.gpu
    return gpu is not None and gpu.compute >= _AMPERE and has_few_rows(workload, MOST_ROWS)


class StreamGemm(StreamTemplate):
    """float16 or bfloat16, no batch, rows that begin at multiples of 16 bytes; any epilogue."""

    name = "cuda.gemm_stream"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not is_streamed(workload, target):
            return False
        n, k = workload["n"], workload["k"]
        return (
            isinstance(k, int)
            and k % PIECE == 0
            and (workload["trans_b"] is True or (isinstance(n, int) and n % PIECE == 0))
        )

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return FloatStream(product_of(self.kernel_workload(workload)), tiles_of(config)).module()

    def stream(self, workload: Workload) -> Stream:
        m, n, k = (known(workload, name) for name in "mnk")
        return Stream(m, n, k, form_of(product_of(workload)), 2.0 * n * k)
