"""From records to a folder: the best of each workload, whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, exported, matmul, write_log
from tvmops.errors import (
    ArgumentError,
    LibraryWriteError,
    LinkError,
    LogReadError,
    NoRecordError,
    WorkloadError,
)
from tvmops.library import write
from tvmops.library.export import export
from tvmops.manifest import Manifest
from tvmops.measure.toolchain import toolchain
from tvmops.runtime.backend import RUNTIME_FILE
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.targets import Target, target
from tvmops.workloads import Workload

SMALL, OTHER = matmul(4, 5, 6), matmul(3, 2, 1)


@pytest.fixture(scope="module")
def here() -> Target:
    return target("native")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the compiler out, for tests of what is chosen and where it is written."""
    monkeypatch.setattr(write, "build_library", lambda module, target, path: path.write_bytes(b"so"))


@pytest.fixture
def one_generic_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the widest generic kernel alone, for tests that call none."""
    every = CpuGemm.generic
    monkeypatch.setattr(CpuGemm, "generic", lambda *given: every(*given)[-1:])


def same(lib: tvmops.Library, work: Workload) -> bool:
    m, n, k = work.dims("m", "n", "k")
    a, b = np.ones((m, k), "float32"), np.ones((k, n), "float32")
    return bool((lib.matmul(a, b) == k).all())


def test_a_library_holds_what_was_asked_for_and_generic_kernels(tmp_path: Path, here: Target) -> None:
    folder = exported(tmp_path / "library", [(4, 5, 6), (3, 2, 1)], here)
    manifest = Manifest.read(folder)
    (variant,) = manifest.variants
    workloads = [entry.workload for entry in variant.kernels]
    assert workloads[:2] == [str(SMALL), str(OTHER)]
    assert set(workloads[2:]) == {str(SMALL.generic())}
    assert {path.name for path in folder.iterdir()} == {variant.module, RUNTIME_FILE, "manifest.json"}
    assert set(manifest.files) == {variant.module, RUNTIME_FILE}
    assert (variant.target, variant.arch, variant.needs) == (here.name, here.arch, here.needs)
    assert manifest.toolchain == toolchain()
    lib = tvmops.load(folder)
    assert same(lib, SMALL)
    assert same(lib, OTHER)
    assert lib.misses() == {}
    names = subprocess.run(["nm", "-D", str(folder / variant.module)], capture_output=True, text=True).stdout
    for entry in variant.kernels:
        assert entry.function in names


@pytest.mark.usefixtures("one_generic_kernel")
def test_a_new_export_is_what_a_running_process_loads_next(tmp_path: Path, here: Target) -> None:
    """The system would hand out again a module that is open under the same name."""
    path = tmp_path / "library"
    first = tvmops.load(exported(path, [(4, 5, 6)], here))
    second = tvmops.load(exported(path, [(3, 2, 1)], here))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(second, OTHER)
        assert same(first, SMALL), "a library in use stays whole when its folder is replaced"
    assert not list(path.parent.glob(".*")), "nothing is left beside it"


@pytest.mark.usefixtures("quick")
class TestChoice:
    def test_the_best_record_is_taken(self, tmp_path: Path, here: Target) -> None:
        template = templates_for(SMALL, here)[0]
        default = template.default(SMALL, here)
        faster = next(c for c in template.space(SMALL, here) if c != default)
        records = [
            default_record(SMALL, here),
            default_record(SMALL, here, config=faster.as_dict(), seconds=(5e-7,), error=2e-7),
            default_record(SMALL, here, seconds=(1e-9,), status="wrong"),
            *(default_record(SMALL, target(name), seconds=(1e-12,)) for name in here.fallbacks),
        ]
        log = write_log(tmp_path / "log.jsonl", *records)
        entry = Manifest.read(export(SMALL, here, [log], tmp_path / "library")).variants[0].kernels[0]
        assert entry.config == faster.as_dict()
        assert (entry.seconds, entry.error) == (5e-7, 2e-7)
        assert entry.tolerance == pytest.approx(4 * 7 * 2**-24)

    def test_a_fallbacks_record_serves_where_there_is_no_nearer_one(self, tmp_path: Path) -> None:
        near, far = target("x86-64-v4"), target("x86-64-v3")
        fast = default_record(SMALL, far, seconds=(1e-9,))
        log = write_log(tmp_path / "far.jsonl", fast)
        library = export(SMALL, near, [log], tmp_path / "library")
        assert Manifest.read(library).variants[0].kernels[0].seconds == 1e-9
        log = write_log(tmp_path / "near.jsonl", fast, default_record(SMALL, near))
        library = export(SMALL, near, [log], tmp_path / "library")
        assert Manifest.read(library).variants[0].kernels[0].seconds == 2e-6

    def test_several_logs_are_read_as_one(self, tmp_path: Path, here: Target) -> None:
        logs = [
            write_log(tmp_path / f"{index}.jsonl", default_record(work, here))
            for index, work in enumerate((SMALL, OTHER))
        ]
        kernels = (
            Manifest.read(export([SMALL, OTHER, SMALL], here, logs, tmp_path / "library")).variants[0].kernels
        )
        assert [entry.workload for entry in kernels[:2]] == [str(SMALL), str(OTHER)]

    def test_stale_records_are_named_and_not_used(self, tmp_path: Path, here: Target) -> None:
        old = default_record(SMALL, here, template="cpu.gemm@0", seconds=(1e-9,))
        log = write_log(tmp_path / "log.jsonl", old, default_record(SMALL, here))
        with pytest.warns(UserWarning, match="records of template cpu.gemm@0 are stale") as said:
            library = export(SMALL, here, [log], tmp_path / "library")
        assert Manifest.read(library).variants[0].kernels[0].seconds == 2e-6
        assert len(said) == 1
        log = write_log(tmp_path / "stale.jsonl", old)
        with pytest.warns(UserWarning), pytest.raises(NoRecordError):
            export(SMALL, here, [log], tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_records_of_a_larger_machine_are_left_out(self, tmp_path: Path, here: Target) -> None:
        """The target's name is the same, its cores are not: the config is none of this space."""
        large = matmul(4096, 4096, 64)
        alien = default_record(large, replace(here, cores=64), seconds=(1e-9,))
        log = write_log(tmp_path / "log.jsonl", alien, default_record(large, here))
        with pytest.warns(UserWarning, match=f"1 records of target {here.name} are not used"):
            library = export(large, here, [log], tmp_path / "library")
        assert Manifest.read(library).variants[0].kernels[0].seconds == 2e-6

    def test_other_workloads_of_a_log_are_of_no_concern(self, tmp_path: Path, here: Target) -> None:
        records = [default_record(SMALL, here), default_record(OTHER, here, template="gone@3")]
        log = write_log(tmp_path / "log.jsonl", *records)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export(SMALL, here, [log], tmp_path / "library")


@pytest.mark.usefixtures("quick")
class TestRefusals:
    def test_a_workload_that_was_never_tuned(self, tmp_path: Path, here: Target) -> None:
        log = write_log(tmp_path / "log.jsonl", default_record(OTHER, here))
        with pytest.raises(NoRecordError) as caught:
            export(SMALL, here, [log], tmp_path / "library")
        assert f"'{SMALL}' on target '{here.name}' in {log}; tune it first" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

    def test_no_workload_at_all(self, tmp_path: Path, here: Target) -> None:
        with pytest.raises(ArgumentError, match="argument 'work'"):
            export([], here, [], tmp_path / "library")

    def test_a_workload_without_sizes(self, tmp_path: Path, here: Target) -> None:
        log = write_log(tmp_path / "log.jsonl", default_record(SMALL, here))
        with pytest.raises(WorkloadError, match=r"field 'm' is '\*'; expected a known size"):
            export(SMALL.generic(), here, [log], tmp_path / "library")

    def test_a_log_that_is_not_there(self, tmp_path: Path, here: Target) -> None:
        with pytest.raises(LogReadError, match="nowhere"):
            export(SMALL, here, [tmp_path / "nowhere.jsonl"], tmp_path / "library")

    def test_a_folder_of_something_else_is_not_replaced(self, tmp_path: Path, here: Target) -> None:
        log = write_log(tmp_path / "log.jsonl", default_record(SMALL, here))
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
        for path in (mine, log):
            with pytest.raises(
                ArgumentError, match="expected a new folder or zip file, or an earlier library"
            ):
                export(SMALL, here, [log], path)
        assert (mine / "thesis.txt").read_text() == "years of work"

    def test_a_failure_leaves_the_earlier_library(
        self, tmp_path: Path, here: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = write_log(tmp_path / "log.jsonl", default_record(SMALL, here), default_record(OTHER, here))
        library = export(SMALL, here, [log], tmp_path / "library")
        before = Manifest.read(library)

        def fail_to_link(module: object, target: Target, path: Path) -> None:
            raise LinkError(path=path, linker="ld", detail="no space")

        def fail_to_write(module: object, target: Target, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def fail_to_move(staging: Path, folder: Path) -> Path:
            if staging.name.startswith(".library-") and not staging.name.endswith("-earlier"):
                raise OSError(errno.EIO, "Input/output error", str(folder))
            return move(staging, folder)

        move = Path.rename
        for place, name, fail, error, detail in (
            (write, "build_library", fail_to_link, LinkError, "no space"),
            (write, "build_library", fail_to_write, LibraryWriteError, "No space left on device"),
            (Path, "rename", fail_to_move, LibraryWriteError, "Input/output error"),
        ):
            with monkeypatch.context() as patch, pytest.raises(error, match=detail):
                patch.setattr(place, name, fail)
                export(OTHER, here, [log], library)
            assert Manifest.read(library) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "log.jsonl"]


@pytest.mark.usefixtures("one_generic_kernel")
@pytest.mark.parametrize("name", ["x86-64-v3", "sapphirerapids"])
def test_a_library_for_another_machine_is_built_here(tmp_path: Path, name: str) -> None:
    there = target(name)
    folder = exported(tmp_path / "library", [(3, 5, 7)], there)
    assert Manifest.read(folder).variants[0].needs == there.needs
