"""PyTorch as a peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tvmops.machine import physical_cores
from tvmops.ops import op_of
from tvmops.report.peers.base import Call, MakeCall, reporting
from tvmops.report.turns import take_turns
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    torch.set_num_threads(physical_cores())
    ta, tb, tc = (torch.from_numpy(array) for array in (a, b, c))
    return lambda: torch.matmul(ta, tb, out=tc)


def conv2d(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """The faster of both memory layouts."""
    torch.set_num_threads(physical_cores())
    padding = workload["padding"]
    assert isinstance(padding, tuple)
    if padding[:2] != padding[2:]:
        return None
    given = {
        spec.name: torch.from_numpy(array) for spec, array in zip(op_of(workload).inputs(workload), inputs)
    }
    y = torch.from_numpy(outputs[0])
    if workload["layout"] == "NHWC":  # the same memory, seen as NCHW in channels_last
        given = {name: each.permute(0, 3, 1, 2) if each.ndim == 4 else each for name, each in given.items()}
        y = y.permute(0, 3, 1, 2)
    attributes: dict[str, Any] = {name: workload[name] for name in ("stride", "dilation", "groups")}
    activation = _ACTIVATIONS[str(workload["activation"])]

    def form(memory: torch.memory_format) -> Call:
        x, w = (given[name].contiguous(memory_format=memory) for name in "xw")
        residual = given["residual"].contiguous(memory_format=memory) if workload["residual"] else None

        def compute() -> torch.Tensor:
            with torch.inference_mode():
                result = functional.conv2d(x, w, given.get("bias"), padding=padding[:2], **attributes)
                if residual is not None:
                    result += residual
                return activation(result) if activation else result

        return reporting(compute, y.copy_)

    forms = {
        "contiguous": form(torch.contiguous_format),
        "channels_last": form(torch.channels_last),
    }
    timings = take_turns(forms, rounds=3)
    return forms[min(timings, key=lambda name: timings[name].median)]


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "none": None,
    "relu": functional.relu_,
    "relu6": lambda x: functional.relu6(x, inplace=True),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: functional.silu(x, inplace=True),
    "hardswish": lambda x: functional.hardswish(x, inplace=True),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}

CALLS: dict[str, MakeCall] = {"conv2d": conv2d, "matmul": matmul}
