"""One function of a library, before it is compiled."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from tvm import IRModule

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
    function = template.build(workload, target, config)["main"].with_attr("global_symbol", entry.function)
    parallel = "parallel" in function.script()  # as a loop's kind, or as a sketch's annotation
    return Kernel(dataclasses.replace(entry, parallel=parallel), IRModule({entry.function: function}))


def function_name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))
