"""Matrix products of one wave whose rows begin anywhere, copied in part beside it: `kernels.spare_copies`."""

from __future__ import annotations

from dataclasses import replace

from tvmops.schedules.cuda.gemm_padded import COPIED, PaddedGemm, pads_of
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import clusters_of
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.cuda.kernels.spare_copies import FEWEST_SPARE
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SHARES = (40, 50, 60, 70, 80)  # percent of k
_SPARE_RATE = 7e10  # bytes a second that one multiprocessor copies, read and written
_CHOICES = {"split_k": (1,), "beside": (1,)}


class SparePaddedGemm(PaddedGemm):
    """`PaddedGemm` whose operands are copied in part beside it, by multiprocessors that have no tile."""

    name = "cuda.gemm_padded_spare"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.is_generic or workload.ranges or not super().covers(workload, target):
            return False
        (batch,) = workload.dims("batch")
        return bool(pads_of(workload)) and batch == 1 and bool(self._plain_choices(workload, target))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        plain = (Knob(knob.name, _CHOICES.get(knob.name, knob.values)) for knob in whole.knobs)
        knobs = (*plain, Knob("share", _SHARES))

        def is_legal(config: Config) -> bool:
            spare = self._spare(config, workload, target)
            return spare >= FEWEST_SPARE and whole.is_legal(_without_share(config))

        return Space(self.name, knobs, is_legal)

    def default(self, workload: Workload, target: Target) -> Config:
        plain = self._plain_choices(workload, target)
        choices = [Config.of(**config.as_dict(), share=share) for config in plain for share in _SHARES]
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def _plain_choices(self, workload: Workload, target: Target) -> list[Config]:
        """Return what the default is chosen from, but for the share."""
        whole = super().space(workload, target)
        return [
            config
            for config in self.choices(workload)
            if config["split_k"] == config["beside"] == 1
            and self._spare(config, workload, target) >= FEWEST_SPARE
            and config in whole
        ]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of a share of the copies, then of the product or of the others beside it."""
        assert target.gpu is not None
        plain = _without_share(config)
        m, n, k = workload.dims("m", "n", "k")
        copied = 4.0 * k * sum({"a": m, "b": n}[name] for name in pads_of(workload))
        before = copied * int(config["share"]) / 100
        beside = (copied - before) / (_SPARE_RATE * self._spare(config, workload, target))
        whole = super().estimate(workload, target, plain)
        saved = (copied - before) / (COPIED * target.gpu.bandwidth)
        product = whole - copied / (COPIED * target.gpu.bandwidth)
        return whole - saved + max(0.0, beside - product)

    def _spare(self, config: Config, workload: Workload, target: Target) -> int:
        """Return how many blocks have no tile."""
        tiles = self.tiles_of(config, target)
        return tiles.blocks - clusters_of(workload, tiles) * tiles.sharers

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return Tiles.of(_without_share(config), target)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), first_share=int(config["share"]))


def _without_share(config: Config) -> Config:
    return Config.of(**{name: value for name, value in config.items if name != "share"})
