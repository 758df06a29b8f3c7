"""Libraries among threads and processes: of Python, of PyTorch, forked and spawned."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tvmops

ROOT = Path(tvmops.__file__).parents[1]
SHAPES = [(8, 8, 8), (1, 64, 32), (17, 31, 61), (256, 256, 256)]
THREADS, CALLS = 16, 20


def products(lib: tvmops.Library, seed: int) -> list[float]:
    """Return the errors of calls on shapes that every thread has, and on one of its own."""
    rng = np.random.default_rng(seed)
    errors = []
    for turn in range(CALLS):
        m, n, k = SHAPES[(seed + turn) % len(SHAPES)] if turn % 5 else (seed + 2, 3, 5)
        a, b = rng.random((m, k), dtype=np.float32), rng.random((k, n), dtype=np.float32)
        errors.append(float(np.abs(lib.matmul(a, b) - a.astype("float64") @ b).max()))
    return errors


@pytest.mark.filterwarnings("ignore:library")
def test_sixteen_threads_get_what_they_asked_for(lib: tvmops.Library) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        errors = [
            each for found in pool.map(lambda seed: products(lib, seed), range(THREADS)) for each in found
        ]
    assert len(errors) == THREADS * CALLS
    assert max(errors) < 1e-3
    assert sum(lib.misses().values()) == THREADS * CALLS // 5  # none was counted twice or forgotten


def test_sixteen_threads_share_a_prepared_call(lib: tvmops.Library) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((THREADS, 17, 61), dtype=np.float32), rng.random((61, 31), dtype=np.float32)
    step = lib.prepare("matmul", a[0], b)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda each: step(each, b), np.concatenate([a] * 8)))
    assert np.abs(np.stack(found[:THREADS]) - a.astype("float64") @ b).max() < 1e-4
    assert all((one == other).all() for one, other in zip(found, found[THREADS:]))


def test_turns_with_pytorch_in_several_threads_end(lib: tvmops.Library) -> None:
    """Both have pools of threads that wait busily; neither may wait for the other."""
    torch = pytest.importorskip("torch")
    a, b = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = a.double() @ b.double()

    def turns(_: int) -> float:
        errors = []
        for _ in range(10):
            errors += [(product - expected).abs().max() for product in (torch.matmul(a, b), lib.matmul(a, b))]
        return float(max(errors))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(turns, range(4))) < 1e-3


SPAWN = """
import multiprocessing, sys
sys.modules["torch"] = None  # tvm_ffi imports it for seconds
import numpy, tvmops

def product(path):
    a = numpy.arange(64, dtype="float32").reshape(8, 8)
    return bool((tvmops.load(path).matmul(a, a) == a @ a).all())

if __name__ == "__main__":
    print(product(sys.argv[1]))
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(product, [sys.argv[1]] * 4))
"""


def test_processes_that_are_spawned_or_forked_compute(library: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, str(script), str(library)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["True", *[str([True] * 4)] * 2]
