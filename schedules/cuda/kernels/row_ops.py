"""Softmax, layer_norm and rms_norm of a row in registers. Beyond its end they hold what changes no result."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.row_values import Meeting, RowValues
from tvmops.schedules.cuda.words import Scalar, c_call, exp2

_LOG2_E = math.log2(math.e)


def softmax(row: RowValues, meeting: Meeting, log: bool) -> None:
    """Each thread takes its own maximum first; what that is worth is put right at the end."""
    most = Scalar(row[0], "float32")
    for i in range(1, row.count):
        most.set(tirx.max(most(), row[i]))
    base = Scalar(_finite(most()), "float32")
    total = Scalar(T.float32(0), "float32")
    for i in range(row.count):
        power = Scalar(_power(row[i] - base()), "float32")
        total.set(total() + power())
        if not log:
            row[i] = power()
    all_base = Scalar(_finite(meeting.combined(most(), tirx.max)), "float32")
    shrink = Scalar(_power(base() - all_base()), "float32")
    all_total = meeting.combined(total() * shrink(), lambda a, b: a + b)
    if log:
        shift = Scalar(T.log(all_total), "float32")
        for i in range(row.count):
            row[i] = row[i] - all_base() - shift()
        return
    factor = Scalar(shrink() / all_total, "float32")
    for i in range(row.count):
        row[i] = row[i] * factor()


def layer_norm(row: RowValues, meeting: Meeting, eps: Any) -> None:
    """The mean first, then the squares of what differs from it: no cancellation."""
    mean = Scalar(row.sum(lambda value: value, meeting) / T.float32(row.cols), "float32")

    def subtract(step: int, column: Any) -> None:
        for i in row.of_step(step):
            row[i] = row[i] - mean()

    row.each(subtract)
    rms_norm(row, meeting, eps)


def rms_norm(row: RowValues, meeting: Meeting, eps: Any) -> None:
    squares = row.sum(lambda value: value * value, meeting) / T.float32(row.cols)
    factor = Scalar(c_call("float32", "rsqrtf", squares + eps, source="\n"), "float32")
    for i in range(row.count):
        row[i] = row[i] * factor()


def _power(x: Any) -> Any:
    """Return e**x."""
    return exp2(x * T.float32(_LOG2_E))


def _finite(value: Any) -> Any:
    return tirx.Select(value == tirx.const(-math.inf, "float32"), T.float32(0), value)
