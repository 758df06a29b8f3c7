"""One function of a library, before it is compiled."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from tvm import IRModule, tirx

from tvmops.manifest import KernelEntry
from tvmops.schedules import Template
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
    functions = {
        name.replace("main", entry.function): function
        for name, function in _named(template.build(workload, target, config))
    }
    parallel = "parallel" in functions[entry.function].script()  # as a loop's kind, or as a sketch's annotation
    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    return Kernel(dataclasses.replace(entry, parallel=parallel), IRModule(named))


def _named(module: IRModule) -> list[tuple[str, tirx.PrimFunc]]:
    return [(variable.name_hint, function) for variable, function in module.functions.items()]


def function_name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))
