"""Which variants of a library serve on this machine: the most specific one for each device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tvmops.errors import LibraryTargetError
from tvmops.machine import Machine, is_one_of, missing_features
from tvmops.manifest import Manifest, Variant

MASK = "TVMOPS_MASK_FEATURES"


@dataclass(frozen=True)
class Choice:
    """The variants that serve, and why each of a library does or does not."""

    taken: Mapping[str, Variant]  # by the device of their arrays, "cpu" or "cuda"
    reasons: Mapping[str, str]  # by target

    def __str__(self) -> str:
        return "\n".join(f"{target}: {reason}" for target, reason in self.reasons.items())


def choose(path: Path, manifest: Manifest, machine: Machine, masked: Iterable[str] = ()) -> Choice:
    """Return the best variant of a library for each device of `machine`.

    The best of those that it can run is one made for its very model, else the one with the
    widest vectors, then the one that needs most features, then the first in the manifest.

    Parameters
    ----------
    masked
        Features to do without, as shell patterns ("avx512*"); those of the environment
        variable TVMOPS_MASK_FEATURES, with commas between, are added.

    Raises
    ------
    LibraryTargetError
        The machine can run none.
    """
    patterns = (*masked, *filter(None, os.environ.get(MASK, "").replace(" ", "").split(",")))
    lacking = {variant.target: _lacking(variant, machine, patterns) for variant in manifest.variants}
    taken: dict[str, Variant] = {}
    for variant in manifest.variants:
        best = taken.get(variant.device)
        if not lacking[variant.target] and (not best or _rank(variant, machine) > _rank(best, machine)):
            taken[variant.device] = variant
    if not taken:
        missing = "; ".join(f"{', '.join(needs)} for {target}" for target, needs in lacking.items())
        raise LibraryTargetError(
            path=path,
            holds=", ".join(lacking) or "no kernels",
            machine=f"{machine.cpu}, {machine.arch}",
            missing=missing,
        )
    reasons = {variant.target: _reason(variant, taken, lacking, machine) for variant in manifest.variants}
    return Choice(taken, reasons)


def _lacking(variant: Variant, machine: Machine, patterns: Iterable[str]) -> list[str]:
    if variant.arch != machine.arch:
        return [f"architecture {variant.arch}"]
    masked = {need for need in variant.needs for pattern in patterns if fnmatchcase(need, pattern)}
    missing = set(missing_features(variant.needs, machine))
    return sorted([*missing, *(f"{need} (masked)" for need in masked - missing)])


def _rank(variant: Variant, machine: Machine) -> tuple[bool, int, int, str]:
    code = max((need for need in variant.needs if need.startswith("sm_")), default="")
    return is_one_of(variant.models, machine), variant.vector_bits, len(variant.needs), code


def _reason(
    variant: Variant, taken: Mapping[str, Variant], lacking: Mapping[str, list[str]], machine: Machine
) -> str:
    where = {"cpu": "arrays on the CPU", "cuda": "tensors on CUDA devices"}[variant.device]
    if lacking[variant.target]:
        return f"refused, this machine lacks {', '.join(lacking[variant.target])}"
    best = taken[variant.device]
    if best is not variant:
        return f"passed over, {best.target} runs here too and is more specific"
    if is_one_of(variant.models, machine):
        return f"serves {where}: made for this model of CPU"
    return f"serves {where}: the most specific one that this machine runs"
