"""From what the plugin writes to blocks; the cycles themselves are tested in tests/arm."""

from __future__ import annotations

import struct

from tvmops.measure.model.cycles import Block, Counts


def written(*blocks: Block) -> bytes:
    words = [len(blocks), 11, 5, 5, 3]
    for block in blocks:
        words += [block.address, block.count, len(block.code), *block.code]
    return struct.pack(f"<{len(words)}Q", *words)


def test_what_the_plugin_wrote_is_read() -> None:
    counts = Counts.parse(written(Block(0x1000, 3, (1, 2)), Block(0x2000, 5, (3,))))
    assert (counts.accesses, counts.l1_misses, counts.l2_misses) == (11, 5, 3)
    assert counts.instructions == 3 * 2 + 5


def test_a_loop_that_crosses_a_page_is_one_block_whatever_else_starts_there() -> None:
    first, second = Block(0xFF8, 90, (1, 2)), Block(0x1000, 90, (3,))
    entry, rest = Block(0xFF0, 10, (8, 9, 1, 2)), Block(0x1000, 10, (3,))
    counts = Counts.parse(written(second, entry, first, rest))
    assert set(counts.blocks) == {Block(0xFF8, 90, (1, 2, 3)), Block(0xFF0, 10, (8, 9, 1, 2, 3))}


def test_neighbours_that_ran_more_or_less_often_stay_apart() -> None:
    counts = Counts.parse(written(Block(0x1000, 2, (1,)), Block(0x1004, 3, (2,))))
    assert len(counts.blocks) == 2
