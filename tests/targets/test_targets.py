from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest

import tvmops
from tvmops import targets
from tvmops.errors import TargetFileError, UnknownTargetError
from tvmops.machine import Machine, this_machine
from tvmops.measure.build import tvm_target
from tvmops.targets import Target, names, native, target

NAMES = names()

V3 = frozenset(target("x86-64-v3").needs)
V4 = frozenset(target("x86-64-v4").needs)


def machine(vendor: str, family: int, model: int, features: frozenset[str], **changes: object) -> Machine:
    plain = Machine(
        arch="x86_64",
        cpu="a test",
        vendor=vendor,
        family=family,
        model=model,
        features=features,
        cores=3,
        l1_bytes=0,
        l2_bytes=0,
        l3_bytes=0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def native_of(monkeypatch: pytest.MonkeyPatch, there: Machine) -> Target:
    monkeypatch.setattr(targets, "this_machine", lambda: there)
    return native()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_describes_a_target(name: str) -> None:
    described = target(name)
    assert described.name == name
    assert described.vector_width("float32") * 32 == described.vector_bits
    assert described.l1_bytes <= described.l2_bytes <= described.l3_bytes
    assert pickle.loads(pickle.dumps(described)).tvm == described.tvm
    if described.kind == "cpu":
        assert tvm_target(described).attrs["num-cores"] == described.cores


@pytest.mark.parametrize("name", NAMES)
def test_fallbacks_run_wherever_the_target_does(name: str) -> None:
    described = target(name)
    assert name not in described.fallbacks
    for fallback in map(target, described.fallbacks):
        assert fallback.arch == described.arch
        assert set(fallback.needs) <= set(described.needs)
        assert fallback.vector_bits <= described.vector_bits


@pytest.mark.parametrize("name", NAMES)
def test_fallbacks_are_the_same_seen_from_each_of_them(name: str) -> None:
    fallbacks = target(name).fallbacks
    for index, fallback in enumerate(fallbacks):
        assert set(target(fallback).fallbacks) <= set(fallbacks[index + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_the_cpus_that_a_file_names_are_found_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    described = target(name)
    for model in described.models:
        for number in (model["low"], model["high"]):
            there = machine(model["vendor"], model["family"], number, frozenset(described.needs))
            there = dataclasses.replace(there, arch=described.arch)
            assert native_of(monkeypatch, there).name == name


def test_names_are_known_and_sorted() -> None:
    assert {"x86-64-v3", "x86-64-v4", "znver4", "znver5", "sapphirerapids"} <= set(NAMES)
    assert list(NAMES) == sorted(NAMES)


@pytest.mark.parametrize("name", ["zenver4", "", "../x86-64-v3", "X86-64-V3"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownTargetError) as caught:
        tvmops.target(name)
    assert repr(name) in str(caught.value)
    for known in (*NAMES, "native"):
        assert known in str(caught.value)


def test_native_is_this_machine() -> None:
    here = tvmops.target("native")
    assert here.name in NAMES
    assert here.cores == this_machine().cores
    assert not here.missing(this_machine())


def test_native_takes_cores_and_caches_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine("AuthenticAMD", 25, 0x11, frozenset(target("znver4").needs), l2_bytes=5 << 20)
    found = native_of(monkeypatch, there)
    assert (found.name, found.cores, found.l2_bytes) == ("znver4", 3, 5 << 20)
    assert found.l3_bytes == target("znver4").l3_bytes  # the machine does not say


def test_an_unknown_cpu_gets_the_best_generic_target_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_of(monkeypatch, machine("Newcomer", 99, 1, V4 | {"new"})).name == "x86-64-v4"
    assert native_of(monkeypatch, machine("Newcomer", 99, 1, V4 - {"avx512bw"})).name == "x86-64-v3"


def test_a_known_cpu_without_its_features_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hypervisor may hide features: code for the CPU's name would crash."""
    assert native_of(monkeypatch, machine("AuthenticAMD", 25, 0x11, V3)).name != "znver4"


def test_a_cpu_that_runs_no_target_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownTargetError, match=r"native \(a test, x86_64\)"):
        native_of(monkeypatch, machine("Old", 6, 1, frozenset({"sse2"})))


def test_what_a_machine_lacks_is_said() -> None:
    old = machine("GenuineIntel", 6, 60, V3 - {"fma"})
    assert target("x86-64-v3").missing(old) == ["fma"]
    arm = dataclasses.replace(old, arch="aarch64")
    assert target("x86-64-v3").missing(arm) == ["architecture x86_64"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(targets, "_FOLDER", tmp_path)
    return tmp_path


GOOD = (Path(targets.__file__).parent / "x86-64-v3.toml").read_text()


@pytest.mark.parametrize(
    "old, new, field, value",
    [
        ("vector_bits = 256", "vector_bits = 0", "vector_bits", "0"),
        ("vector_bits = 256", "vector_bits = true", "vector_bits", "True"),
        ("vector_bits = 256", "vector_bits = '256'", "vector_bits", "'256'"),
        ("vector_bits = 256", "", "vector_bits", "'missing'"),
        ("vector_bits = 256", "vector_bits = 256\nname = 'x'", "name", "'x'"),
        ("vector_bits = 256", "vector_bits = 256\nvectorbits = 1", "vectorbits", "1"),
        ('arch = "x86_64"', "arch = 64", "arch", "64"),
        ("fallbacks = []", "fallbacks = 'x86-64-v2'", "fallbacks", "'x86-64-v2'"),
        ("fallbacks = []", "fallbacks = 3", "fallbacks", "3"),
        ("fallbacks = []", "fallbacks = [3]", "fallbacks", "[3]"),
        ("fallbacks = []", "models = [1]", "models", "[1]"),
        ("tvm = {", "tvm = 'llvm' #", "tvm", "'llvm'"),
    ],
)
def test_a_bad_field_is_named(folder: Path, old: str, new: str, field: str, value: str) -> None:
    assert old in GOOD
    (folder / "toy.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(TargetFileError) as caught:
        target("toy")
    assert f"toy.toml: field '{field}' is {value}; expected " in str(caught.value)


def test_a_file_that_is_no_toml_is_named(folder: Path) -> None:
    (folder / "toy.toml").write_text("kind = \n")
    with pytest.raises(TargetFileError, match=r"toy\.toml"):
        target("toy")
