"""What the kernels of convolutions share: a function, and the arrays that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent


def conv_module(
    shape: ConvShape,
    dtype: str,
    begin: Callable[[dict[str, Any]], None],
    body: Callable[[], None],
    beside: int = 1,
    workspace: bool = False,
) -> IRModule:
    """Return a module with `main(x, w, [bias], [residual], y, [workspace])`.

    Parameters
    ----------
    begin
        Takes the arrays, by name in calling order; what it emits the host does.
    body
        Emits what each thread does.
    beside
        Blocks that share a multiprocessor.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        begin(conv_arrays(shape, dtype, workspace))
        T.device_entry()
        with T.attr({"tirx.launch_bounds_min_blocks_per_sm": beside}):
            body()
    return IRModule({"main": builder.get().with_attr("global_symbol", "main")})


def conv_arrays(shape: ConvShape, dtype: str, workspace: bool = False) -> dict[str, Any]:
    """Declare the arguments of a function, in calling order."""
    s, taps = shape, (shape.down.size, shape.across.size)
    y = (s.n, s.oh, s.ow, s.co) if s.channels_last else (s.n, s.co, s.oh, s.ow)
    shapes = {
        "x": (s.n, s.h, s.w, s.ci) if s.channels_last else (s.n, s.ci, s.h, s.w),
        "w": (s.co, *taps, s.ci_each) if s.channels_last else (s.co, s.ci_each, *taps),
        **({"bias": (s.co,)} if s.epilogue.bias else {}),
        **({"residual": y} if s.epilogue.residual else {}),
        "y": y,
    }
    arrays = {name: _array(name, extents, dtype) for name, extents in shapes.items()}
    if workspace:
        arrays["workspace"] = _array("workspace", (tirx.Var("workspace_bytes", "int64"),), "uint8")
    return arrays


def _array(name: str, extents: tuple[Extent, ...], dtype: str) -> Any:
    return T.arg(name, T.buffer(extents, dtype, align=16, buffer_name=name))
