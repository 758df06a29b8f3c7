"""One function of a library, before it is compiled."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, tirx

from tvmops.manifest import KernelEntry
from tvmops.measure.blocks import has_blocks
from tvmops.schedules import Template
from tvmops.schedules.cuda.own_names import own_names
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Kernel:
    """A function, and what the manifest says of it."""

    entry: KernelEntry
    module: IRModule


def build_kernel(
    entry: KernelEntry, template: Template, workload: Workload, target: Target, config: Config
) -> Kernel:
    """Return the function that `config` becomes for `workload`, under the name that `entry` has."""
    with own_names():  # of several kernels in one module
        built = template.build(workload, target, config)
    functions = {name.replace("main", entry.function): function for name, function in _named(built)}
    parallel = _is_parallel(functions[entry.function])
    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    return Kernel(dataclasses.replace(entry, parallel=parallel), IRModule(named))


def _named(module: IRModule) -> list[tuple[str, tirx.PrimFunc]]:
    return [(variable.name_hint, function) for variable, function in module.functions.items()]


def _is_parallel(function: tirx.PrimFunc) -> bool:
    """True if some loop runs on several threads: by its kind or, in a sketch, by an annotation."""
    if has_blocks(function):
        return "parallel" in function.script()
    return _has_parallel_loop(function.body)


def _has_parallel_loop(statement: Any) -> bool:
    if isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL:
        return True
    if isinstance(statement, tirx.SeqStmt):
        return any(map(_has_parallel_loop, statement.seq))
    if isinstance(statement, tirx.IfThenElse):
        return any(map(_has_parallel_loop, (statement.then_case, statement.else_case)))
    return hasattr(statement, "body") and _has_parallel_loop(statement.body)


def function_name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))
