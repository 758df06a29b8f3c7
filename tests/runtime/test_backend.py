"""All cores work, as many as asked for: threads are counted by the time that they spent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tvmops
from tvmops.errors import ArgumentError
from tvmops.machine import this_machine
from tvmops.runtime import backend

ROOT = Path(tvmops.__file__).parents[1]
needs_two_cores = pytest.mark.skipif(this_machine().cores < 2, reason="needs two physical cores")

CHILD = """
import os, sys, threading, time, warnings
if "--compiler" not in sys.argv:
    sys.modules["torch"] = None  # tvm_ffi imports it for seconds
else:
    import tvm
import numpy, tvmops
from tvmops.machine import _core_id
cores = {_core_id(cpu): cpu for cpu in os.sched_getaffinity(0)}
os.sched_setaffinity(0, list(cores.values())[:2])  # two cores, however many there are
lib = tvmops.load(sys.argv[1])
a = numpy.ones((256, 256), "float32")
out = numpy.empty_like(a)

def tasks():
    "Return the state of each thread of this process, and its CPU time in ticks of the clock."
    found = {}
    for task in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
        found[task] = fields[0], int(fields[11]) + int(fields[12])
    return found

def spent():
    return {task: ticks for task, (_, ticks) in tasks().items()}

def busy():
    "Return how many threads computed, in a stretch of matmuls of half a second of CPU time."
    lib.matmul(a, a, out=out)
    while sum(state == "R" for state, _ in tasks().values()) > 1:
        time.sleep(0.01)  # threads of a new pool wait busily for a while
    before = spent()
    while True:
        for _ in range(50):
            lib.matmul(a, a, out=out)
        gained = {task: ticks - before.get(task, 0) for task, ticks in spent().items()}
        if sum(gained.values()) > 0.5 * os.sysconf("SC_CLK_TCK"):
            # on a busy machine the first thread waits for others, in a loop, longer than they compute
            return sum(ticks > 0.02 * sum(gained.values()) for ticks in gained.values())
"""


def in_child(code: str, library: Path, *arguments: str, **environment: str) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD + code, str(library), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**plain, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_two_cores
def test_kernels_run_on_all_physical_cores(library: Path) -> None:
    assert in_child("print(busy())", library) == ["2"]


@needs_two_cores
def test_they_do_too_where_the_compiler_was_imported_first(library: Path) -> None:
    assert in_child("print(busy())", library, "--compiler") == ["2"]


@needs_two_cores
def test_set_threads_goes_both_ways_and_holds_for_every_python_thread(library: Path) -> None:
    code = """
lib.set_threads(1)
print(busy())
lib.set_threads(2)
print(busy())
lib.set_threads(1)
thread = threading.Thread(target=lambda: print(busy()))
thread.start()
thread.join()
"""
    assert in_child(code, library) == ["1", "2", "1"]


@pytest.mark.parametrize("variable", ["TVMOPS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_a_variable_sets_the_default(library: Path, variable: str) -> None:
    assert in_child("print(busy())", library, **{variable: "1"}) == ["1"]


def test_our_variable_goes_before_openmps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("TVMOPS_NUM_THREADS", raising=False)
    assert backend.default_threads() == 3
    monkeypatch.setenv("TVMOPS_NUM_THREADS", "2")
    assert backend.default_threads() == 2
    monkeypatch.setenv("TVMOPS_NUM_THREADS", "")
    assert backend.default_threads() == 3
    for nonsense in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("TVMOPS_NUM_THREADS", nonsense)
        with pytest.warns(UserWarning, match=rf"\$TVMOPS_NUM_THREADS is '{nonsense}'; expected an integer"):
            assert backend.default_threads() == 3
    monkeypatch.delenv("TVMOPS_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert backend.default_threads() == this_machine().cores


@pytest.mark.parametrize("variable", ["TVMOPS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_more_threads_than_cpus_are_as_many(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them would wait for each other for minutes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("TVMOPS_NUM_THREADS", raising=False)
    monkeypatch.setenv(variable, "99999999999")
    with pytest.warns(UserWarning, match=f"{variable} is 99999999999; kernels use 4 threads"):
        assert backend.default_threads() == 4


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "1", None, 10_000])
def test_a_bad_count_is_refused_and_changes_nothing(lib: tvmops.Library, count: object) -> None:
    before = backend._wanted
    with pytest.raises(ArgumentError, match=r"argument 'count' is .*; expected an integer from 1 to"):
        lib.set_threads(count)  # type: ignore[arg-type]
    assert backend._wanted == before


@needs_two_cores
def test_a_warning_of_too_few_threads_points_at_the_call(
    lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any depth: of the first call of a shape, of one that is known, of one that is bound."""
    a, b, out = (np.ones((256, 256), "float32") for _ in range(3))
    monkeypatch.setattr(backend, "_wanted", 1_000_000)
    bound = lib.prepare("matmul", a, b)
    for call in (lib.matmul, lib.matmul, bound):
        backend._pool.wanted = 1
        with pytest.warns(UserWarning, match="kernels use .* of 1000000 threads") as said:
            call(a, b, out=out)
        assert [each.filename for each in said] == [__file__]


def test_a_process_that_forks_and_its_child_have_all_their_threads(library: Path) -> None:
    """Threads do not come along in a fork; a child that waits for them, or joins them at its end, hangs."""
    code = """
expected = lib.matmul(a, a)
child = os.fork()
if child == 0:
    print((lib.matmul(a, a) == expected).all(), busy(), flush=True)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (lib.matmul(a, a) == expected).all(), busy())
"""
    assert in_child(code, library) == ["True", "2", "3", "True", "2"]


@needs_two_cores
def test_a_process_forked_before_the_first_call_has_all_its_threads(library: Path) -> None:
    code = """
child = os.fork()
if child == 0:
    print(busy(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    assert in_child(code, library) == ["2"]
