"""Calls on a GPU: right, where and when they should be, and nothing besides."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tvmops  # noqa: E402
from tests.device.cases import HAS_WORKSPACE, NAMES, make_case  # noqa: E402
from tvmops.errors import CallError, CallTypeError, NotInLibraryError, TvmopsError  # noqa: E402
from tvmops.runtime.load import Library  # noqa: E402

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:library"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
LONG = 200_000_000  # cycles: a tenth of a second


def test_variants_of_both_kinds_serve(lib: Library) -> None:
    assert set(lib.variants.taken) == {"cpu", "cuda"}


@pytest.mark.parametrize("name", NAMES)
def test_results_are_right(lib: Library, name: str) -> None:
    case = make_case(name, lib)
    for _ in range(2):  # the second time, the call is known
        case.check(case.call(lib))


@pytest.mark.parametrize("name", NAMES)
def test_results_go_where_they_are_wanted(lib: Library, name: str) -> None:
    case = make_case(name, lib)
    found = getattr(lib, case.method)(*case.arguments, **case.attributes)
    outs = tuple(torch.zeros_like(each) for each in (found if isinstance(found, tuple) else (found,)))
    for _ in range(2):
        case.call(lib, out=outs if isinstance(found, tuple) else outs[0])
        case.check(outs[0])
        outs[0].zero_()


@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_captured_in_a_graph(lib: Library, name: str) -> None:
    case = make_case(name, lib)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.call(lib)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = case.call(lib)
    for _ in range(2):
        found.zero_()
        graph.replay()
        case.check(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_does_not_wait_for_the_device(lib: Library, name: str) -> None:
    case = make_case(name, lib)
    case.call(lib)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    asleep = torch.cuda.Event()
    asleep.record()
    found = case.call(lib)
    assert not asleep.query()
    case.check(found)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HAS_WORKSPACE])
def test_nothing_is_allocated_where_the_result_is_given(lib: Library, name: str) -> None:
    case = make_case(name, lib)
    found = getattr(lib, case.method)(*case.arguments, **case.attributes)
    for _ in range(2):
        case.call(lib, out=found)
    torch.cuda.synchronize()
    before, free = torch.cuda.memory_stats()["allocation.all.allocated"], torch.cuda.mem_get_info()[0]
    for _ in range(10):
        case.call(lib, out=found)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize("name", NAMES)
def test_kernels_run_on_the_current_stream(lib: Library, name: str) -> None:
    """They see what earlier work on it wrote, late: on another stream they would not wait for that."""
    case = make_case(name, lib)
    first = case.arguments[0]
    right = first.clone()
    case.call(lib)
    first.view(torch.uint8).zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        first.copy_(right)
        found = case.call(lib)
    stream.synchronize()
    case.check(found)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_begin_at_any_element(lib: Library, name: str) -> None:
    case = make_case(name, lib).moved()
    assert case.arguments[0].data_ptr() % 16 != 0
    for _ in range(2):
        case.check(case.call(lib))


def test_a_result_that_begins_anywhere_is_refused(lib: Library) -> None:
    case = make_case("matmul bfloat16", lib)
    memory = torch.empty(case.expected.numel() + 1, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(CallError, match="'out' is at an address that is no multiple of 16"):
        case.call(lib, out=memory[1:].view(case.expected.shape))


def test_a_prepared_call(lib: Library) -> None:
    case = make_case("matmul bfloat16", lib)
    step = lib.prepare("matmul", *case.arguments)
    out = torch.empty(case.expected.shape, dtype=torch.bfloat16, device="cuda")
    assert step(*case.arguments, out=out) is out
    case.check(out)
    case.check(step(*case.arguments))


def test_arrays_of_both_kinds_of_device_by_turns(lib: Library) -> None:
    case = make_case("matmul float32", lib)
    here = tuple(each.cpu() for each in case.arguments)
    outs = [torch.empty(case.expected.shape, device=device) for device in ("cpu", "cuda")]
    for _ in range(3):
        for arguments, out in zip((here, case.arguments), outs):
            assert lib.matmul(*arguments, out=out) is out
            torch.testing.assert_close(out.double().cpu(), case.expected.cpu(), rtol=0, atol=1e-4)
            out.zero_()
    arrays = [each.numpy() for each in here]
    np.testing.assert_allclose(lib.matmul(*arrays), case.expected.cpu().numpy(), rtol=0, atol=1e-4)


def test_sixteen_threads_on_both_kinds_of_device(lib: Library) -> None:
    case = make_case("matmul float32", lib)
    here = tuple(each.cpu() for each in case.arguments)

    def work(number: int) -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            for _ in range(200):
                found = lib.matmul(*(case.arguments if number % 2 else here))
            stream.synchronize()
        return found.double().cpu()

    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(work, range(16)):
            torch.testing.assert_close(found, case.expected.cpu(), rtol=0, atol=1e-4)


def test_what_can_not_be_is_refused(lib: Library) -> None:
    a, b = make_case("matmul float32", lib).arguments
    refusals: list[tuple[type[TvmopsError], str, Any]] = [
        (CallError, "'b' is on device cuda:0; expected device cpu", lambda: lib.matmul(a.cpu(), b)),
        (CallTypeError, "'b' is of dtype float16", lambda: lib.matmul(a, b.half())),
        (CallError, "'out' is on device cpu", lambda: lib.matmul(a, b, out=torch.empty(128, 96))),
        (CallError, "requires grad", lambda: lib.matmul(a.clone().requires_grad_(), b)),
        (CallError, "shares memory with 'a'", lambda: lib.matmul(a, b[:, :64], out=a)),
        (NotInLibraryError, "softmax", lambda: lib.softmax(torch.rand(3, 7, device="cuda"))),
    ]
    for _ in range(2):
        lib.matmul(a, b)  # so that such a call is known
        for kind, message, refused in refusals:
            with pytest.raises(kind, match=message):
                refused()


def test_it_says_which_kernel_answers(lib: Library) -> None:
    a, b = make_case("matmul bfloat16", lib).arguments
    explanation = lib.explain("matmul", a, b)
    assert explanation.tier == "exact" and explanation.kernel.template.startswith("cuda.")


@needs_two
@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_the_second_gpu_are_answered_there(lib: Library, name: str) -> None:
    for device in ("cuda:0", "cuda:1", "cuda:0"):  # the current one is the first
        case = make_case(name, lib, device)
        case.check(case.call(lib))


@needs_two
def test_tensors_of_two_gpus_are_refused(lib: Library) -> None:
    a, b = make_case("matmul float32", lib, "cuda:0").arguments
    with pytest.raises(CallError, match="'b' is on device cuda:1; expected device cuda:0"):
        lib.matmul(a, b.to("cuda:1"))


def test_the_compiler_is_not_imported(library: Path, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--library") is None:
        pytest.skip("the library was exported in this process")
    tvmops.load(library)
    assert "tvm" not in sys.modules
