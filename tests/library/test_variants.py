"""One folder for several machines: what it holds, which part of it serves, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, matmul, write_log
from tests.library.conftest import NARROW, WIDE
from tvmops import gpu
from tvmops.errors import (
    ArgumentError,
    LibraryDamagedError,
    LibraryTargetError,
    NoRecordError,
)
from tvmops.library import write
from tvmops.library.export import export
from tvmops.machine import Machine, this_machine
from tvmops.manifest import FILE, Manifest, Variant
from tvmops.runtime import backend, load
from tvmops.runtime.backend import RUNTIME_FILE
from tvmops.runtime.variants import MASK, choose
from tvmops.targets import target
from tvmops.workloads import Workload

ROOT = Path(tvmops.__file__).parents[1]
here = this_machine()
needs_avx512 = pytest.mark.skipif(bool(target(WIDE).missing(here)), reason="needs AVX-512")


def test_a_folder_holds_a_module_for_each_target_and_one_runtime(two_targets: Path) -> None:
    manifest = Manifest.read(two_targets)
    modules = [variant.module for variant in manifest.variants]
    assert [variant.target for variant in manifest.variants] == [NARROW, WIDE]
    assert {path.name for path in two_targets.iterdir()} == {*modules, RUNTIME_FILE, FILE}
    tuned = [[k.workload for k in variant.kernels if k.seconds] for variant in manifest.variants]
    assert tuned == [[str(matmul(17, 31, 61))], [str(matmul(17, 31, 61)), str(matmul(256, 256, 256))]]
    assert [variant.needs for variant in manifest.variants] == [target(n).needs for n in (NARROW, WIDE)]


def test_a_kernel_names_the_line_of_the_log_that_it_came_from(two_targets: Path) -> None:
    lines = (two_targets.parent / "log.jsonl").read_bytes().split(b"\n")
    digests = [hashlib.sha256(line).hexdigest() for line in lines]
    narrow, wide = Manifest.read(two_targets).variants
    assert narrow.kernels[0].record == digests[0]
    assert [kernel.record for kernel in wide.kernels] == [*digests[1:3], ""]


CALL = """
import sys
sys.modules["torch"] = None
import numpy, tvmops
lib = tvmops.load(sys.argv[1])
for m, n, k in [(17, 31, 61), (256, 256, 256), (5, 6, 7)]:
    a, b = (numpy.random.default_rng(0).random(shape, dtype="float32") for shape in ((m, k), (k, n)))
    assert abs(lib.matmul(a, b) - a.astype("float64") @ b).max() < 1e-3
print(lib.variants.taken["cpu"].target, lib.explain("matmul", a, b).variant, *lib.misses().values())
loaded = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if sys.argv[1] in line}
print(*sorted(loaded & {variant.module for variant in lib.manifest.variants}))
"""


@needs_avx512
@pytest.mark.parametrize(
    "mask, serves, misses", [("", WIDE, 1), ("avx512*", NARROW, 2), ("gfni,avx512bw", NARROW, 2)]
)
def test_the_same_folder_runs_as_avx512_and_as_avx2(
    two_targets: Path, mask: str, serves: str, misses: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, str(two_targets)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, MASK: mask},
    )
    assert done.returncode == 0, done.stderr
    module = next(v.module for v in Manifest.read(two_targets).variants if v.target == serves)
    assert done.stdout.splitlines() == [" ".join([serves, serves, *"1" * misses]), module]


@needs_avx512
def test_an_argument_masks_too_and_it_is_said_what_serves_and_why(two_targets: Path) -> None:
    whole, masked = tvmops.load(two_targets), tvmops.load(two_targets, mask_features=["avx512[bf]*"])
    assert str(whole.variants).splitlines() == [
        f"{NARROW}: passed over, {WIDE} runs here too and is more specific",
        f"{WIDE}: serves arrays on the CPU: the most specific one that this machine runs",
    ]
    assert str(masked.variants).splitlines() == [
        f"{NARROW}: serves arrays on the CPU: the most specific one that this machine runs",
        f"{WIDE}: refused, this machine lacks avx512bw (masked), avx512f (masked)",
    ]
    a, b = np.ones((17, 61), "float32"), np.ones((61, 31), "float32")
    assert (whole.matmul(a, b) == masked.matmul(a, b)).all()
    assert f"  variant      {NARROW}\n" in str(masked.explain("matmul", a, b))


def test_where_nothing_fits_one_line_says_what_there_is_and_what_is_lacking(
    two_targets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "load_kernels", lambda path: pytest.fail("kernels were loaded"))
    monkeypatch.setattr(load, "this_machine", lambda: dataclasses.replace(here, features=frozenset({"avx2"})))
    with pytest.raises(LibraryTargetError) as caught:
        tvmops.load(two_targets)
    assert str(caught.value).startswith(
        f"library {two_targets}: holds {NARROW}, {WIDE}; this machine ({here.cpu}, {here.arch}) lacks "
        f"bmi2, f16c, fma for {NARROW}; avx512bw, avx512cd,"
    )
    assert "\n" not in str(caught.value)


def test_every_file_counts_also_that_of_a_variant_that_does_not_serve(
    two_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_backend", "load_kernels"):
        monkeypatch.setattr(backend, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    copy = Path(shutil.copytree(two_targets, tmp_path / "copy"))
    assert len(list(copy.iterdir())) == 4
    for path in copy.iterdir():
        whole = path.read_bytes()
        for at in (0, len(whole) // 3, len(whole.rstrip()) - 1):
            altered = bytearray(whole)
            altered[at] ^= 0x5A
            path.write_bytes(altered)
            with pytest.raises(LibraryDamagedError, match=f"file '{path.name}' .*; nothing was executed"):
                tvmops.load(copy)
        path.unlink()
        with pytest.raises((LibraryDamagedError, FileNotFoundError), match=f"'?{path.name}"):
            tvmops.load(copy)
        path.write_bytes(whole)
    (copy / "libevil.so").write_bytes(b"")
    with pytest.raises(LibraryDamagedError, match=r"file 'libevil.so' is not named by the manifest; nothing"):
        tvmops.load(copy)


def test_no_path_leaves_the_folder_and_no_module_goes_unchecked(two_targets: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_targets, tmp_path / "copy"))
    manifest = Manifest.read(copy)
    variant = manifest.variants[0]
    for name in ("../libmine.so", "/lib/libc.so", "sub/k.so", "..", ".", "", "k\0.so"):
        for field in ("module", "runtime"):
            changed = dataclasses.replace(variant, **{field: name})
            dataclasses.replace(manifest, variants=(changed,)).write(copy)
            with pytest.raises(LibraryDamagedError, match="is outside the folder; nothing was executed"):
                tvmops.load(copy)
        dataclasses.replace(manifest, files={**manifest.files, name: "00"}).write(copy)
        with pytest.raises(LibraryDamagedError, match="is outside the folder"):
            tvmops.load(copy)
    files = {name: digest for name, digest in manifest.files.items() if name != variant.module}
    dataclasses.replace(manifest, files=files).write(copy)
    with pytest.raises(LibraryDamagedError, match=f"'{variant.module}' has no digest in the manifest"):
        tvmops.load(copy)


def made_up(features: str, **fields: object) -> Machine:
    return dataclasses.replace(here, arch="x86_64", features=frozenset(features.split()), **fields)  # type: ignore[arg-type]


def variant(name: str) -> Variant:
    of = target(name)
    return Variant(of.name, of.arch, of.needs, of.vector_bits, of.models, "k.so", "r.so", ())


AVX2 = "avx2 fma f16c bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
ZEN4 = " ".join(target("znver4").needs)
CASES = {
    "the widest": (made_up(AVX512, vendor="Other"), "x86-64-v3 x86-64-v4", "x86-64-v4"),
    "only what runs": (made_up(AVX2, vendor="Other"), "x86-64-v3 x86-64-v4", "x86-64-v3"),
    "its very model": (
        made_up(AVX512, vendor="GenuineIntel", family=6, model=85),
        "x86-64-v4 skylake-avx512",
        "skylake-avx512",
    ),
    "more features": (made_up(ZEN4, vendor="Other"), "x86-64-v4 znver4 icelake-server", "znver4"),
    "equal ones in order": (made_up(AVX512, vendor="Other"), "x86-64-v4 skylake-avx512", "x86-64-v4"),
    "equal ones in order, turned": (
        made_up(AVX512, vendor="Other"),
        "skylake-avx512 x86-64-v4",
        "skylake-avx512",
    ),
}


@pytest.mark.parametrize("machine, held, serves", CASES.values(), ids=CASES.keys())
def test_the_most_specific_variant_serves(machine: Machine, held: str, serves: str) -> None:
    manifest = Manifest(tuple(map(variant, held.split())), {}, {})
    choice = choose(Path("lib"), manifest, machine)
    assert {device: each.target for device, each in choice.taken.items()} == {"cpu": serves}
    assert set(choice.reasons) == set(held.split())


def test_a_gpu_and_a_cpu_are_served_from_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tuple(map(variant, ["nvidia-a100", "x86-64-v3", "nvidia-h200"])), {}, {})
    machine = made_up(AVX2)
    for capabilities, gpu_variant in {((9, 0),): "nvidia-h200", ((8, 6),): "nvidia-a100", (): None}.items():
        monkeypatch.setattr(gpu, "capabilities", lambda found=capabilities: found)
        taken = {device: each.target for device, each in choose(Path("lib"), manifest, machine).taken.items()}
        assert taken == {"cpu": NARROW, **({"cuda": gpu_variant} if gpu_variant else {})}
    monkeypatch.setattr(gpu, "capabilities", lambda: ((9, 0),))
    assert set(choose(Path("lib"), manifest, machine, ["sm_*"]).taken) == {"cpu"}


def test_what_one_of_several_targets_has_no_template_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "build_library", lambda module, target, path: path.write_bytes(b"so"))
    rows, points = (
        Workload.parse(text) for text in ("softmax rows=4 cols=1024", "activation size=9 activation=tanh")
    )
    cpu, cuda = target(NARROW), target("nvidia-h200")
    records = [default_record(rows, cpu), default_record(points, cpu), default_record(rows, cuda)]
    log = write_log(tmp_path / "log.jsonl", *records)
    said = f"'{points}' was not tuned for target nvidia-h200; no kernel answers there"
    with pytest.warns(UserWarning, match=re.escape(said)):
        library = export([rows, points], [cpu, cuda], [log], tmp_path / "library")
    on_cpu, on_gpu = Manifest.read(library).variants
    assert [kernel.workload for kernel in on_cpu.kernels[:2]] == [str(rows), str(points)]
    assert on_gpu.kernels[0].workload == str(rows)
    assert {Workload.parse(kernel.workload).op for kernel in on_gpu.kernels} == {rows.op}
    with pytest.raises(NoRecordError, match="no usable record for 'activation"):  # sketch search may make one
        export(points, cuda, [log], tmp_path / "none")


def test_a_target_without_any_record_is_refused(tmp_path: Path) -> None:
    work, machines = matmul(4, 5, 6), [target(NARROW), target(WIDE)]
    log = write_log(tmp_path / "log.jsonl", default_record(work, machines[1]))
    with pytest.raises(NoRecordError, match=f"'{work}' on target '{NARROW}'"):
        export(work, machines, [log], tmp_path / "library")
    with pytest.raises(ArgumentError, match="argument 'target'"):
        export(work, [], [log], tmp_path / "library")


def test_records_of_one_targets_templates_are_not_stale_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "build_library", lambda module, target, path: path.write_bytes(b"so"))
    work, there = matmul(4, 5, 6), target(NARROW)
    alien = dataclasses.replace(default_record(work, there), target="nvidia-h200", template="cuda.gemm@1")
    log = write_log(tmp_path / "log.jsonl", default_record(work, there), alien)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(work, there, [log], tmp_path / "library")
