"""Numbers and tables as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from tvmops.records import Record
from tvmops.space import Config


def duration(seconds: float) -> str:
    """Return a time to four digits in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def time_of(record: Record) -> str:
    """Return the time of a record, or the cycles of one that is modelled."""
    return duration(record.time) if record.cycles is None else f"{record.cycles} modelled cycles"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of aligned columns; those whose cells all start with a digit go to the right."""
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    numeric = [all(_is_number(row[at]) for row in rows) for at in range(len(header))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()


def config_text(record: Record) -> str:
    """Return the knobs of a record; a trace is shown by its digest."""
    return str(Config(tuple(record.config.items())))


def json_line(**fields: Any) -> str:
    """Return one JSON object; numbers that JSON has no form for become null."""
    return json.dumps({name: _finite(value) for name, value in fields.items()})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
