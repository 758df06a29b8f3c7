"""Attention of packed sequences on Hopper's tensor cores; `kernels.attention_packed` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.attention_sizes import is_plain, sizes_of
from tvmops.schedules.cuda.attention_wgmma import ALIGNED, WgmmaAttention, costs, tiles_of
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel
from tvmops.signatures.attention import BHLD, THD
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


class VarlenAttention(WgmmaAttention):
    """One kernel serves all sizes but that of head_dim, and needs no bound of the lengths."""

    name = "cuda.attention_varlen"
    version = 1
    generic_together = 64

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not is_plain(workload, ALIGNED):
            return False
        return workload["layout"] == THD

    def together(self, workload: Workload) -> tuple[int, ...]:
        return (8, 16, 32, 64)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess as of as many sequences of equal lengths: blocks' mean, and what parties of heads lose."""
        if workload.is_generic:
            return 0.0
        batch, *totals = workload.dims("batch", "total_q", "total_k")
        q_len, kv_len = (-(-total // batch) for total in totals)
        alike = workload.replace(q_len=q_len, kv_len=kv_len, total_q=0, total_k=0, layout=BHLD)
        tiles, heads = tiles_of(config, target), workload.dims("heads")[0]
        cost = costs(alike, tiles)
        parties = -(-heads // tiles.together)
        return float(cost.sum() * batch * heads / tiles.blocks + parties * cost.max() / 2)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        general = self.kernel_workload(workload)
        totals = extent(general, "total_q"), extent(general, "total_k")
        return PackedKernel(sizes_of(general), tiles_of(config, target), *totals).module()


__all__ = ["VarlenAttention"]
