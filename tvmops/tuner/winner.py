"""Who won a final comparison? Ties within noise are broken by a fixed order."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from tvmops.records import Record

_NOISE = 0.01  # two builds of one config differ by as much
_DOUBT = 0.05  # a config this much slower, or more, has lost however the turns scatter


def pick_winner(records: Iterable[Record], default: tuple[str, str]) -> Record | None:
    """Return the winner among `records` of one comparison, or None if none ran.

    `default` is the template's label and the text of its default config.

    The fastest by its median is the yardstick. Sample i of each record was taken in the
    same turn, so the ratio to the yardstick's sample i is free of the machine's drift. A
    record is tied with it if the median ratio is within 1%, or within 5% and it was as fast
    in a quarter of the turns: one that is slower by more than turns scatter is not. Of
    those tied the default wins, since a winner must beat it, else the smallest text, so that
    two runs agree.
    """
    ran = [record for record in records if record.ran]
    if not ran:
        return None
    fastest = min(ran, key=lambda record: (record.time, record.config_key))
    tied = [record for record in ran if _is_tied(record, fastest)]
    return min(tied, key=lambda record: (_key(record) != default, *_key(record)))


def _key(record: Record) -> tuple[str, str]:
    return record.template, record.config_key


def _is_tied(record: Record, fastest: Record) -> bool:
    if record.is_modelled:  # exact: there are no turns, and no noise
        return record.time == fastest.time
    ratios = sorted(ours / theirs for ours, theirs in zip(record.seconds, fastest.seconds))
    typical, good = statistics.median(ratios), ratios[len(ratios) // 4]
    return typical <= 1 + _NOISE or (typical <= 1 + _DOUBT and good <= 1)
