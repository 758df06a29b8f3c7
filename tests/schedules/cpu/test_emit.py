from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.sym import Analyzer

from tvmops.schedules.cpu.emit import ALL, Extent, Span, ceildiv, chunk, chunks, divides, minimum, share

COUNT, SIZE = st.integers(1, 200), st.integers(1, 30)


N = tirx.Var("n", "int32")


def number(extent: Extent, n: int = 1) -> int:
    """Return the value of an extent where N is `n`."""
    if isinstance(extent, int):
        return extent
    analyzer = Analyzer()
    analyzer.bind(N, tirx.const(n, "int32"))
    return int(analyzer.simplify(extent))


def elements(span: Span, n: int = 1) -> range:
    count = number(span.count, n)
    assert count >= 0
    return range(number(span.start, n), number(span.start, n) + count)


@given(st.integers(0, 50), COUNT, SIZE)
def test_chunks_cover_the_whole_once(start: int, count: int, size: int) -> None:
    whole = Span(start, count)
    parts = [chunk(whole, index, size) for index in range(number(chunks(whole, size)))]
    assert [e for part in parts for e in elements(part)] == list(elements(whole))


@given(COUNT, SIZE)
def test_shares_cover_the_whole_once(count: int, parts: int) -> None:
    whole = Span(0, count)
    found = [e for index in range(parts) for e in elements(share(whole, index, parts))]
    assert found == list(elements(whole))


@given(COUNT, SIZE)
@settings(max_examples=30)
def test_a_symbolic_extent_is_cut_like_a_known_one(count: int, size: int) -> None:
    known, symbolic = Span(0, count), Span(0, N)
    blocks = number(chunks(known, size))
    assert number(chunks(symbolic, size), count) == blocks
    for index in range(blocks):
        assert elements(chunk(symbolic, index, size), count) == elements(chunk(known, index, size))
    for index in range(size):
        shares = share(symbolic, index, size), share(known, index, size)
        assert list(elements(shares[0], count)) == list(elements(shares[1]))


@pytest.mark.parametrize("count", [7, N])
def test_all_is_one_chunk(count: Extent) -> None:
    whole = Span(3, count)
    assert chunks(whole, ALL) == 1
    assert chunk(whole, 0, ALL) is whole


def test_known_numbers_leave_no_trace_of_the_general_case() -> None:
    assert (ceildiv(7, 4), ceildiv(8, 4), minimum(3, 5)) == (2, 2, 3)
    assert chunk(Span(0, 32), 1, 8) == Span(8, 8)
    assert divides(8, 32)
    assert not divides(8, 33)
    assert not divides(8, N)
