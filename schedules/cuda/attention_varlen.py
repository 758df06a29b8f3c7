"""Attention of packed sequences on Hopper's tensor cores; `kernels.attention_packed` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.ops.attention import packed_alone
from tvmops.schedules.cuda.attention_sizes import is_plain, sizes_of
from tvmops.schedules.cuda.attention_wgmma import ALIGNED, WgmmaAttention, costs, tiles_of
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_packed import PackedKernel
from tvmops.schedules.cuda.kernels.attention_paged import PagedKernel
from tvmops.schedules.cuda.kernels.attention_tiles import Tiles
from tvmops.signatures.attention import THD
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

PAGES = (8, 16, 32, 64, 128, 256)  # keys of one


class VarlenAttention(WgmmaAttention):
    """One kernel serves all sizes but that of head_dim, and needs no bound of the lengths."""

    name = "cuda.attention_varlen"
    version = 1
    generic_together = 64

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not is_plain(workload, ALIGNED):
            return False
        return workload["layout"] == THD and workload["page_size"] in (0, *PAGES)

    def together(self, workload: Workload) -> tuple[int, ...]:
        return (8, 16, 32, 64)

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess as of as many sequences of equal lengths: blocks' mean, and what parties of heads lose."""
        if workload.is_generic:
            return 0.0
        batch, total_q, total_k, kv_len = workload.dims("batch", "total_q", "total_k", "kv_len")
        mean = -(-total_k // batch) if total_k else kv_len
        alike = packed_alone(workload, -(-total_q // batch), mean)
        tiles, heads = tiles_of(config, target), workload.dims("heads")[0]
        cost = costs(alike, tiles)
        parties = -(-heads // tiles.together)
        return float(cost.sum() * batch * heads / tiles.blocks + parties * cost.max() / 2)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return self.kernel(self.kernel_workload(workload), tiles_of(config, target)).module()

    def kernel(self, general: Workload, tiles: Tiles) -> PackedKernel:
        """Return the kernel of a workload whose sizes are not known."""
        sizes, total_q = sizes_of(general), extent(general, "total_q")
        (page_size,) = general.dims("page_size")
        if page_size:
            return PagedKernel(sizes, tiles, total_q, extent(general, "pages"), page_size)
        return PackedKernel(sizes, tiles, total_q, extent(general, "total_k"))


__all__ = ["PAGES", "VarlenAttention"]
