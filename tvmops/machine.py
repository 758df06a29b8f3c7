"""`Machine`: the computer that this process runs on, as Linux describes it.

Both halves use it: making, to find the native target; using, to check that a library fits.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmops import arm, gpu

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """What a kernel may rely on here. Sizes in bytes; 0 where the system does not say."""

    arch: str  # "x86_64", "aarch64"
    cpu: str  # the vendor's name for it
    vendor: str
    family: int
    model: int
    features: frozenset[str]  # as /proc/cpuinfo spells them
    cores: int  # physical ones that this process may use
    l1_bytes: int  # data cache of one core
    l2_bytes: int  # of one core
    l3_bytes: int  # of the group of cores that shares one

    @property
    def fingerprint(self) -> str:
        """A short text that differs where tuning results may differ."""
        digest = hashlib.sha256(" ".join(sorted(self.features)).encode()).hexdigest()[:8]
        return f"{self.cpu} family {self.family} model {self.model}, {self.cores} cores, features {digest}"


@functools.cache
def this_machine() -> Machine:
    """Describe this machine; read once a process."""
    info = _first_cpu(_CPUINFO.read_text() if _CPUINFO.exists() else "")
    arch = platform.machine()
    flags = arm.features() if arch == "aarch64" else frozenset((info.get("flags") or "").split())
    caches = {level: _cache_bytes(level) for level in (1, 2, 3)}
    return Machine(
        arch=arch,
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        vendor=info.get("vendor_id") or info.get("CPU implementer") or "unknown",
        family=_number(info.get("cpu family")),
        model=_number(info.get("model") or info.get("CPU part")),
        features=flags,
        cores=physical_cores(),
        l1_bytes=caches[1],
        l2_bytes=caches[2],
        l3_bytes=caches[3],
    )


def cache_folder() -> Path:
    """Return where what can be made again is kept: $TVMOPS_CACHE, by default ~/.cache/tvmops."""
    folder = os.environ.get("TVMOPS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "tvmops"


def physical_cores() -> int:
    """Count the physical cores that this process may run on.

    Hyper-threads of one core count once; CPU affinity and a container's CPU quota count.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_core_id(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def one_cpu_a_core() -> list[int]:
    """Return a CPU of each physical core that this process may run on, lowest first."""
    first: dict[tuple[str, str], int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        first.setdefault(_core_id(cpu), cpu)
    return sorted(first.values())


def _core_id(cpu: int) -> tuple[str, str]:
    topology = _CPUS / f"cpu{cpu}" / "topology"
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "cpu", str(cpu)


def _quota() -> int:
    """Return the cores that the cgroup grants, or a large number where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16


def _cache_bytes(level: int) -> int:
    for index in sorted((_CPUS / "cpu0" / "cache").glob("index*")):
        try:
            if (
                int((index / "level").read_text()) != level
                or (index / "type").read_text().strip() == "Instruction"
            ):
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        return int(size.rstrip("KM")) * scale
    return 0


def _first_cpu(cpuinfo: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            break
        fields[name.strip()] = value.strip()
    return fields


def _number(text: str | None) -> int:
    try:
        return int(text or "0", 0)
    except ValueError:
        return 0


def is_one_of(models: Iterable[Mapping[str, Any]], machine: Machine) -> bool:
    """True if `machine` is one of `models`, given by vendor, family, lowest and highest model number."""
    return any(
        machine.vendor == model["vendor"]
        and machine.family == model["family"]
        and model["low"] <= machine.model <= model["high"]
        for model in models
    )


def missing_features(needs: Iterable[str], machine: Machine) -> list[str]:
    """Return those of `needs` that `machine` lacks, sorted; "sm_90a" and such ask for a GPU."""
    return sorted(need for need in set(needs) - machine.features if not gpu.runs(need))
