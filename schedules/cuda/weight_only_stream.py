"""Few rows of x by integer weights at the speed of memory; `kernels.stream_integers` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.stream_integers import IntegerStream, form_of
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.streaming import MOST_ROWS, Stream, StreamTemplate, tiles_of
from tvmops.schedules.cuda.weight_only_product import BK, STEP, product_of
from tvmops.signatures import ANY
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
_MOST_ROWS = 2 * MOST_ROWS  # the L2 has the weights for the second half


class WeightOnlyStream(StreamTemplate):
    """float16 or bfloat16 x of few rows by 4-bit or 8-bit weights; `cuda.weight_only` takes the rest."""

    name = "cuda.weight_only_stream"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul_weight_only" or target.gpu is None or target.gpu.compute < _AMPERE:
            return False
        m, k, group = workload["m"], workload["k"], workload["group"]
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and isinstance(group, int)
            and (group in (STEP, 2 * STEP) or group % BK == 0)
            and (m == ANY or (isinstance(m, int) and m <= _MOST_ROWS))
            and isinstance(k, int)
            and k % PIECE == 0
            and (m == ANY or next(iter(self.space(workload, target)), None) is not None)
        )

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY, x_bits="24")  # x is multiplied as it is

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return IntegerStream(product_of(self.kernel_workload(workload)), tiles_of(config)).module()

    def stream(self, workload: Workload) -> Stream:
        m, n, k = (known(workload, name) for name in "mnk")
        product = product_of(workload)
        layout = product.groups
        nbytes = n * k * layout.bits / 8 * layout.rows * layout.step / layout.group
        return Stream(m, n, k, form_of(product), nbytes, grouped=True)
