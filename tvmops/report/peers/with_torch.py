"""PyTorch as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call, MakeCall
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    torch.set_num_threads(physical_cores())
    ta, tb, tc = (torch.from_numpy(array) for array in (a, b, c))
    return lambda: torch.matmul(ta, tb, out=tc)


CALLS: dict[str, MakeCall] = {"matmul": matmul}
