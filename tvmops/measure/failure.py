"""How a failure is told in a record: one line, its beginning and its end."""

from __future__ import annotations

_HEAD, _TAIL = 300, 300  # characters; compilers say what is wrong first, and why last
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "MemoryError", "Cannot allocate memory")


def one_line(text: str) -> str:
    """Return `text` on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _HEAD + _TAIL else f"{line[:_HEAD]} ... {line[-_TAIL:]}"


def describe(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def tells_of_memory(text: str) -> bool:
    """True if `text`, e.g. the last words of a process, says that memory ran out."""
    return any(sign in text for sign in _OUT_OF_MEMORY)
