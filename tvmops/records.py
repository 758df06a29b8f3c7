"""`Record`: one measured config, one line of a log; and the log, which is append-only."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tvmops.errors import LogReadError, LogWriteError

SCHEMA = 1
NOMINAL_HERTZ = 1e9  # modelled cycles take part in searches as if a core had this frequency


@dataclass(frozen=True)
class Record:
    """One trial.

    `seconds` holds the raw samples, one a timed call, empty unless it ran. `status` is
    "ok", "slow" (right, but given up after its first run), or why there is no time:
    "wrong", "crash", "timeout", "compile", "memory".

    A record of kind "modelled" has no seconds, but the cycles that a model of the core gives
    for what one call executes, which is counted.
    """

    workload: str  # what the kernel was built for
    target: str
    machine: str
    template: str  # name and version, "cpu.gemm@1"
    config: Mapping[str, Any]
    status: str
    stage: str = "search"  # "final": compared turn by turn with the other leaders; "verify": later, again
    seconds: tuple[float, ...] = ()
    cold_seconds: tuple[float, ...] = ()  # of a final: on arrays that no cache holds
    sustained_seconds: tuple[float, ...] = ()  # of a final: of a call among many, for seconds a sample
    sustained_megahertz: tuple[float, ...] = ()  # of the device's clock meanwhile
    rank: int | None = None  # of a final: place in its comparison, 0 for the winner
    error: float | None = None  # largest absolute one against float64
    detail: str = ""  # of a failure
    kind: str = "measured"  # or "modelled"
    cycles: int | None = None  # of a modelled one
    counts: Mapping[str, int] = field(default_factory=dict)  # of that: instructions, misses of caches
    strategy: str = ""
    seed: int = 0
    toolchain: Mapping[str, str] = field(default_factory=dict)
    clock: str = ""
    when: str = ""  # ISO 8601, UTC
    shape: str = ""  # where sizes of `workload` are `*`: the workload that the kernel ran on
    schema: int = SCHEMA

    @property
    def ran(self) -> bool:
        """True if this config computed the right result and has a time."""
        return self.status in ("ok", "slow") and (bool(self.seconds) or self.cycles is not None)

    @property
    def is_modelled(self) -> bool:
        return self.kind == "modelled"

    @property
    def time(self) -> float:
        """The median sample in seconds; infinite for a config that did not run.

        Of a modelled one its cycles at `NOMINAL_HERTZ`: to be compared with others of its kind.
        """
        if self.ran and self.cycles is not None:
            return self.cycles / NOMINAL_HERTZ
        return statistics.median(self.seconds) if self.ran else float("inf")

    @property
    def fastest(self) -> float:
        """The smallest sample in seconds: what a search compares, since noise only adds."""
        return min(self.seconds) if self.ran and self.seconds else self.time

    @property
    def config_key(self) -> str:
        return json.dumps(dict(self.config), sort_keys=True)

    @property
    def subject(self) -> str:
        """What was computed, and by a kernel for which shapes: records of one subject compare."""
        return f"{self.shape} by {self.workload}" if self.shape else self.workload

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes two records trials of the same thing."""
        return self.subject, self.target, self.template, self.config_key

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read one line; fields of newer schemas that this one does not know are dropped."""
        table = json.loads(line)
        known = {f.name for f in dataclasses.fields(cls)}
        table = {name: value for name, value in table.items() if name in known}
        for name in ("seconds", "cold_seconds", "sustained_seconds", "sustained_megahertz"):
            table[name] = tuple(table.get(name, ()))
        return cls(**table)


def read_log(path: str | os.PathLike[str]) -> list[Record]:
    """Read all records of a log; see `read_lines` for lines that are none."""
    return [record for _, record in read_lines(path)]


def read_lines(path: str | os.PathLike[str]) -> list[tuple[str, Record]]:
    """Read all lines of a log, each as it stands and as a record.

    A last line that was cut short (its writer died) is skipped with a warning, as is any
    other line that is no record; the rest is used.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LogReadError(path=path, detail=error.strerror) from None
    read, strange = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = line.decode()
            read.append((text, Record.from_json(text)))
        except (ValueError, TypeError, AttributeError):
            strange.append(number)
    if strange and strange[-1] == len(lines):
        warnings.warn(f"tuning log {path}: line {strange.pop()} is cut short; skipped", stacklevel=3)
    if strange:
        others = f" and {len(strange) - 3} others" if len(strange) > 3 else ""
        named = ", ".join(map(str, strange[:3])) + others
        what = f"lines {named} are no records" if len(strange) > 1 else f"line {named} is no record"
        warnings.warn(f"tuning log {path}: {what}; skipped", stacklevel=3)
    return read


class LogWriter:
    """Appends records to a log, each flushed to the disk before the call returns.

    Several writers may share a file: a lock is held for each call. A line that an earlier
    writer left unfinished is ended first, so that it can't swallow the next.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.written = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab+")
        except OSError as error:
            raise LogWriteError(path=self.path, detail=error.strerror, kept=0) from None

    def append(self, *records: Record) -> None:
        """Write all of `records`, one after the other, or none."""
        lines = b"".join(record.to_json().encode() + b"\n" for record in records)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._write_whole(lines)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise LogWriteError(path=self.path, detail=error.strerror, kept=self.written) from None
        self.written += len(records)

    def _write_whole(self, lines: bytes) -> None:
        """Write `lines` or nothing: a full disk must not leave half of one."""
        descriptor = self._file.fileno()
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            lines = b"\n" + lines
        try:
            rest = lines
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def best_records(
    records: Iterable[Record], targets: Sequence[str] | None = None, machine: str | None = None
) -> dict[str, Record]:
    """Return the best record of each subject: of each workload, but for symbolic kernels.

    The winner of a final comparison, where leaders were timed turn by turn, goes before
    times taken apart, unless it lost a later one on the same machine. Then the smallest
    median wins, and of equal ones the smallest config text, so that the choice does not
    depend on the order of lines. A modelled record counts only where none was measured. What
    `logs verify --mark` found to fail on its machine does not count.

    Parameters
    ----------
    targets
        Names of targets that count, nearest first; a record of a nearer one wins over a
        faster one of a farther. All count where it is None.
    machine
        Fingerprint of a machine whose own records win over those of others of its target.
    """
    records = list(records)
    verified = {(r.machine, r.identity): r.ran for r in records if r.stage == "verify"}
    usable = [
        record
        for record in records
        if record.ran
        and verified.get((record.machine, record.identity), True)
        and (targets is None or record.target in targets)
    ]
    winners = set(map(id, _last_winners(usable)))

    def order(record: Record) -> tuple[bool, int, bool, bool, bool, float, str]:
        distance = targets.index(record.target) if targets is not None else 0
        won, final = id(record) in winners, record.stage == "final"
        is_other = record.machine != machine
        return record.is_modelled, distance, is_other, not won, not final, record.time, record.config_key

    best: dict[str, Record] = {}
    for record in usable:
        best[record.subject] = min(best.get(record.subject, record), record, key=order)
    return best


def _last_winners(records: Iterable[Record]) -> list[Record]:
    """Return the records that won the last comparison in which they took part."""
    finals = [(record.machine, record.identity, record) for record in records if record.rank is not None]
    last: dict[tuple[str, tuple[str, ...]], str] = {}
    for machine, identity, record in finals:
        last[machine, identity] = max(last.get((machine, identity), ""), record.when)
    return [r for machine, identity, r in finals if r.rank == 0 and r.when == last[machine, identity]]
