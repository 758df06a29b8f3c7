"""What a 64-bit ARM processor can do, as Linux tells a process.

The kernel's word to the process counts, not /proc/cpuinfo: an emulator passes on that of the
machine below it.
"""

from __future__ import annotations

import ctypes

# Bits from the lowest on, as /proc/cpuinfo spells them: arch/arm64/include/uapi/asm/hwcap.h of Linux.
_HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
    "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
_HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
    "svebf16 i8mm bf16 dgh rng bti mte"
)
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_PR_SVE_GET_VL, _VL_BYTES = 51, 0xFFFF


def features() -> frozenset[str]:
    """Return the features of the CPU that this process runs on.

    The length of SVE's vectors is one: "sve256". Code for vectors of a fixed length is wrong
    where theirs is another, and no instruction fails.
    """
    library = ctypes.CDLL(None)
    library.getauxval.restype = ctypes.c_ulong
    library.getauxval.argtypes = [ctypes.c_ulong]
    found = {*_named(_HWCAP, library.getauxval(_AT_HWCAP)), *_named(_HWCAP2, library.getauxval(_AT_HWCAP2))}
    if "sve" in found:
        found.add(f"sve{8 * (library.prctl(_PR_SVE_GET_VL) & _VL_BYTES)}")
    return frozenset(found)


def _named(names: str, bits: int) -> set[str]:
    return {name for position, name in enumerate(names.split()) if bits >> position & 1}
