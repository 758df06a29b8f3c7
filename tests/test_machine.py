from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from tvmops import arm, machine
from tvmops.machine import missing_features, physical_cores, this_machine

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu avx2 fma avx512f

processor\t: 1
model\t\t: 999
flags\t\t: fpu
"""

ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd4f
"""


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /proc/cpuinfo and /sys/devices/system/cpu of another machine."""
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "this_machine", machine.this_machine.__wrapped__)
    monkeypatch.setattr(machine, "_quota", lambda: 1 << 16)
    return tmp_path


def give_cpus(folder: Path, monkeypatch: pytest.MonkeyPatch, cores: list[tuple[int, int]]) -> None:
    """Describe CPUs by (package, core)."""
    for cpu, (package, core) in enumerate(cores):
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(cores))))


def give_cache(folder: Path, index: int, level: int, kind: str, size: str) -> None:
    cache = folder / "cpu0" / "cache" / f"index{index}"
    cache.mkdir(parents=True)
    for name, text in (("level", str(level)), ("type", kind), ("size", size)):
        (cache / name).write_text(text + "\n")


def test_this_machine_is_described() -> None:
    here = this_machine()
    assert here.arch == os.uname().machine
    assert here.features
    assert 1 <= here.cores <= len(os.sched_getaffinity(0))
    assert this_machine() is here


def test_hyper_threads_of_a_core_count_once(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_cpus(computer, monkeypatch, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)])
    assert physical_cores() == 4


def test_affinity_and_quota_limit_the_cores(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_cpus(computer, monkeypatch, [(0, core) for core in range(8)])
    assert physical_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5})
    assert physical_cores() == 3
    monkeypatch.setattr(machine, "_quota", lambda: 2)
    assert physical_cores() == 2


def test_without_topology_each_cpu_is_a_core(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert physical_cores() == 3


def test_caches_are_read_by_level_and_instructions_left_out(computer: Path) -> None:
    (computer / "cpuinfo").write_text(INTEL)
    give_cache(computer, 0, 1, "Instruction", "32K")
    give_cache(computer, 1, 1, "Data", "48K")
    give_cache(computer, 2, 2, "Unified", "2048K")
    give_cache(computer, 3, 3, "Unified", "105M")
    there = machine.this_machine()
    assert (there.l1_bytes, there.l2_bytes, there.l3_bytes) == (48 << 10, 2 << 20, 105 << 20)


def test_x86_is_read_from_its_first_cpu(computer: Path) -> None:
    (computer / "cpuinfo").write_text(INTEL)
    there = machine.this_machine()
    assert (there.vendor, there.family, there.model) == ("GenuineIntel", 6, 143)
    assert there.features == {"fpu", "avx2", "fma", "avx512f"}
    assert there.l3_bytes == 0


def test_arm_is_read_from_its_first_cpu(computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (computer / "cpuinfo").write_text(ARM)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(arm, "features", lambda: frozenset({"fp", "asimd", "sve", "sve128"}))
    there = machine.this_machine()
    assert (there.vendor, there.model) == ("0x41", 0xD4F)
    assert there.features == {"fp", "asimd", "sve", "sve128"}


def test_a_machine_that_says_nothing_is_still_described(computer: Path) -> None:
    there = machine.this_machine()
    assert there.cores >= 1
    assert there.features == frozenset()
    assert there.fingerprint


def test_the_fingerprint_tells_features_and_cores_apart(
    computer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = set()
    for cpuinfo, cores in ((INTEL, 1), (INTEL, 2), (INTEL.replace("avx2", "avx3"), 2), (ARM, 2)):
        (computer / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(machine, "physical_cores", lambda cores=cores: cores)
        prints.add(machine.this_machine().fingerprint)
        assert machine.this_machine().fingerprint in prints
    assert len(prints) == 4


def test_missing_features_are_named_in_order(computer: Path) -> None:
    (computer / "cpuinfo").write_text(INTEL)
    assert missing_features(["zeta", "avx2", "amx"], machine.this_machine()) == ["amx", "zeta"]
