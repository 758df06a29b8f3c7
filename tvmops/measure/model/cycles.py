"""From counted blocks to cycles: LLVM's machine code analyser has a model of each core's pipelines.

A block's cycles are those of one of many iterations in a row, as if it were a loop, which nearly
all of a kernel's time is spent in. All loads hit the first cache: the misses are counted apart.
"""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tvmops.errors import ModelToolsError

_ITERATIONS = 100
_COVERED = 0.998  # of all instructions, in the blocks that are modelled; the others are taken for like them
_VERSIONS = (19,)  # of LLVM: other versions have other models, and would give other numbers
_FEATURES = "+sve2,+i8mm,+bf16,+dotprod,+fullfp16,+lse,+rcpc"
_LIKE = {"cortex-a76": "neoverse-n1"}  # LLVM 19 takes that core for an A57; they are siblings


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, and how often."""

    address: int
    count: int
    code: tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """What one call of a kernel executes, and the lines of 64 bytes that it misses."""

    blocks: tuple[Block, ...]
    accesses: int
    l1_misses: int
    l2_misses: int

    @property
    def instructions(self) -> int:
        return sum(block.count * len(block.code) for block in self.blocks)

    @classmethod
    def parse(cls, raw: bytes) -> Counts:
        """Read what the plugin wrote; see count.c."""
        words = [word for (word,) in struct.iter_unpack("<Q", raw)]
        count, accesses, l1_misses, _, l2_misses = words[:5]
        blocks, at = [], 5
        for _ in range(count):
            address, times, length = words[at : at + 3]
            blocks.append(Block(address, times, tuple(words[at + 3 : at + 3 + length])))
            at += 3 + length
        return cls(_joined(blocks), accesses, l1_misses, l2_misses)


def _joined(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Join blocks to those that follow them and ran as often: qemu ends a block at the end of a page, too."""
    by_end: dict[tuple[int, int], Block] = {}
    for block in sorted(blocks, key=lambda block: (block.address, block.code)):
        before = by_end.pop((block.address, block.count), None)
        whole = Block(before.address, block.count, before.code + block.code) if before else block
        by_end[whole.address + 4 * len(whole.code), block.count] = whole
    return tuple(by_end.values())


@functools.cache
def analyser() -> tuple[str, str, str]:
    """Return llvm-mca, llvm-mc, and their version.

    Raises
    ------
    ModelToolsError
        They are not there.
    """
    for version in _VERSIONS:
        programs = [shutil.which(f"{name}-{version}") for name in ("llvm-mca", "llvm-mc")]
        if all(programs):
            mca, mc = map(str, programs)
            said = subprocess.run([mca, "--version"], capture_output=True, text=True, check=True).stdout
            found = re.search(r"version ([\d.]+)", said)
            return mca, mc, found[1] if found else str(version)
    raise ModelToolsError(what=f"llvm-mca-{_VERSIONS[0]}", detail="it is not on the path")


def cycles(counts: Counts, core: str) -> int:
    """Return the modelled cycles of `counts` on `core`, as LLVM calls it."""
    total = counts.instructions
    heavy, covered = [], 0
    for block in sorted(counts.blocks, key=lambda b: (-b.count * len(b.code), b.address)):
        heavy.append(block)
        covered += block.count * len(block.code)
        if covered >= _COVERED * total:
            break
    once = _iteration_cycles([block.code for block in heavy], core)
    modelled = sum(block.count * each for block, each in zip(heavy, once))
    return round(modelled * total / covered)


def peak_macs(core: str) -> float:
    """Return the float32 multiply-adds a cycle of `core`: of a loop of nothing but those."""
    chains = 24
    code = tuple(0x4E3FCFE0 & ~0x1F | register for register in range(chains))  # fmla vN.4s, v31.4s, v31.4s
    (once,) = _iteration_cycles([code], core)
    return 4 * chains / once


def _iteration_cycles(blocks: Sequence[tuple[int, ...]], core: str) -> list[float]:
    text = _assembly({word for block in blocks for word in block})
    source = "".join(
        f"# LLVM-MCA-BEGIN\n{''.join(text[word] for word in block)}# LLVM-MCA-END\n" for block in blocks
    )
    options = [f"-mcpu={_LIKE.get(core, core)}", f"-mattr={_FEATURES}", f"-iterations={_ITERATIONS}"]
    said = _run(
        [analyser()[0], "-mtriple=aarch64", *options, "-skip-unsupported-instructions=any", "-"], source
    )
    found = [int(each) / _ITERATIONS for each in re.findall(r"Total Cycles:\s+(\d+)", said)]
    if len(found) != len(blocks):
        raise ModelToolsError(what=f"llvm-mca for {core}", detail=f"{len(found)} of {len(blocks)} analyses")
    return found


def _assembly(words: set[int]) -> dict[int, str]:
    """Return the text of each instruction."""
    ordered = sorted(words)
    bytes_of = "".join(" ".join(f"{b:#04x}" for b in struct.pack("<I", word)) + "\n" for word in ordered)
    said = _run([analyser()[1], "-disassemble", "-triple=aarch64", "-mattr=+all"], bytes_of)
    lines = [line.strip() for line in said.splitlines() if line.startswith("\t")]
    instructions = [f"{line}\n" for line in lines if line != ".text"]
    return dict(zip(ordered, instructions, strict=True))


def _run(command: list[str], given: str) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode != 0:
        raise ModelToolsError(what=command[0], detail=done.stderr.strip()[-300:])
    return done.stdout
