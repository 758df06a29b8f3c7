"""Compile a module to an object file.

TVM's own pipeline serves every backend at once. Kernels of our templates need a third of
its passes, so compiling a candidate takes about half the time; modules of sketch search,
which hold schedule blocks, take the whole of it.
"""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import IRModule, s_tir, tirx

from tvmops.targets import Target


def tvm_target(target: Target) -> tvm.target.Target:
    """Return what TVM calls `target`."""
    return tvm.target.Target({**target.tvm, "num-cores": target.cores})


def compile_object(module: IRModule, target: Target, path: Path) -> None:
    """Compile all functions of `module` into the object file `path`."""
    compile_module(module, target).write_to_file(str(path))


def compile_module(module: IRModule, target: Target) -> tvm.runtime.Module:
    """Compile all functions of `module` for the CPU `target`; nothing is written."""
    machine = tvm_target(target)
    module = tirx.transform.BindTarget(machine.with_host(machine))(module)
    lower = s_tir.pipeline.default_s_tir_pipeline() if _has_blocks(module) else _lower_plain_loops()
    module = _finish_host()(lower(module))
    generate = tvm.get_global_func(f"target.build.{machine.kind.name}")
    built: tvm.runtime.Module = generate(module, machine)
    return built


def _lower_plain_loops() -> tvm.transform.Pass:
    transform = tirx.transform
    return tvm.transform.Sequential(
        [
            transform.FlattenBuffer(),
            transform.VectorizeLoop(True),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            transform.RemoveNoOp(),
            transform.CommonSubexprElim(),
            transform.VerifyMemory(),
            transform.AnnotateEntryFunc(),
            transform.SplitHostDevice(),
            transform.MakePackedAPI(),
        ]
    )


def _finish_host() -> tvm.transform.Pass:
    return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])


def _has_blocks(module: IRModule) -> bool:
    """True if any function is made of schedule blocks; those have one at their root."""
    return any(isinstance(function.body, tvm.s_tir.SBlockRealize) for function in module.functions.values())
