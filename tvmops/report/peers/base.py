"""What a peer's module gives: for each op that it has, a function that makes a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvmops.workloads import Workload

Call = Callable[[], object]
# takes a kernel's inputs and outputs; None where the peer has no form of this workload
MakeCall = Callable[[Workload, Sequence[Any], Sequence[Any]], Call | None]
