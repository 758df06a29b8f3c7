"""Attention of prompts on keys and values in pages, on Hopper; `kernels.attention_pool` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.attention_sizes import is_plain, sizes_of
from tvmops.schedules.cuda.attention_varlen import PAGES
from tvmops.schedules.cuda.attention_wgmma import ALIGNED, WgmmaAttention, tiles_of
from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_pool import PoolKernel
from tvmops.schedules.cuda.kernels.attention_tiles import Tiles
from tvmops.signatures.attention import BLHD, NO_MASK, THD
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


class PoolAttention(WgmmaAttention):
    """One kernel serves all sizes but those of head_dim and of a page."""

    name = "cuda.attention_pool"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not is_plain(workload, ALIGNED):
            return False
        return workload["layout"] != THD and workload["page_size"] in PAGES and workload["mask"] == NO_MASK

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return self.kernel(self.kernel_workload(workload), tiles_of(config, target)).module()

    def kernel(self, general: Workload, tiles: Tiles) -> PoolKernel:
        """Return the kernel of a workload whose sizes are not known."""
        (page_size,) = general.dims("page_size")
        return PoolKernel(
            sizes_of(general), tiles, general["layout"] == BLHD, extent(general, "pages"), page_size
        )


__all__ = ["PoolAttention"]
