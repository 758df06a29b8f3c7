from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvmops.errors import LibraryDamagedError, LibraryError, LibraryMissingError, LibraryVersionError
from tvmops.manifest import FILE, SCHEMA, KernelEntry, Manifest, Variant

KERNEL = KernelEntry(
    function="matmul_m1",
    workload="matmul m=1 n=* k=2 dtype=float32",
    ranges={"n": (1, 8)},
    template="cpu.gemm@1",
    config={"mr": 1, "pack_b": True},
    seconds=1.25e-7,
    error=3e-8,
    tolerance=4e-7,
    measured="today",
    record="ab12",
)
VARIANT = Variant(
    target="x86-64-v3",
    arch="x86_64",
    needs=("avx2", "fma"),
    vector_bits=256,
    models=({"vendor": "GenuineIntel", "family": 6, "low": 60, "high": 61},),
    module="kernels.so",
    runtime="runtime.so",
    kernels=(KERNEL,),
)
MANIFEST = Manifest(variants=(VARIANT,), files={"kernels.so": "00ff"}, toolchain={"tvm": "0.27"})


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    """Each bit of each byte; white space may change, what the manifest says may not."""
    MANIFEST.write(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes()
    unnoticed = 0
    for position in range(len(whole)):
        for bit in (0, 3, 6):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                assert Manifest.read(tmp_path) == MANIFEST
                unnoticed += 1
            except (LibraryDamagedError, LibraryVersionError) as error:
                assert str(tmp_path) in str(error)
    assert unnoticed < len(whole) / 4, "only what stands between the values may change unnoticed"


def test_a_manifest_cut_short_is_damaged(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(LibraryDamagedError, match=f"'{FILE}' is no manifest; nothing was executed"):
            Manifest.read(tmp_path)


def test_a_newer_schema_is_said_to_be_newer(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps({"schema": SCHEMA + 1, "everything": "different"}))
    with pytest.raises(LibraryVersionError, match=f"schema is {SCHEMA + 1}; this tvmops reads {SCHEMA}"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '"schema"', "null", '{"schema": 2}', "\xff"])
def test_what_is_no_manifest_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(LibraryDamagedError):
        Manifest.read(tmp_path)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LibraryMissingError, match=f"has no {FILE}; expected what `tvmops export`"):
        Manifest.read(tmp_path)
    with pytest.raises(LibraryMissingError, match="is no folder"):
        Manifest.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(LibraryError, match="is no folder"):
        Manifest.read(tmp_path / "file")
