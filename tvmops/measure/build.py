"""Compile a module to an object file.

TVM's own pipeline serves every backend at once. Kernels of our templates, plain loops, need
a third of its passes, so compiling a candidate takes about half the time. Functions of sketch
search hold schedule blocks; they take those of its passes that serve a CPU. (The rest of it
fails on a function that looks at addresses, as ours do to refuse overlapping arguments.)
"""

from __future__ import annotations

import os
from pathlib import Path

import tvm
from tvm import IRModule, s_tir, tirx

from tvmops.measure import cuda
from tvmops.measure.blocks import has_blocks
from tvmops.measure.link import link
from tvmops.targets import Target


def tvm_target(target: Target) -> tvm.target.Target:
    """Return what TVM calls `target`."""
    return tvm.target.Target({**target.tvm, "num-cores": target.cores})


def build_library(
    module: IRModule, target: Target, path: Path, checked: bool = True, bare: bool = False
) -> None:
    """Compile all functions of `module` and link them into the shared library `path`.

    See `compile_module` for `checked`, which GPU code always is, and `link` for `bare`.
    """
    if target.kind == "cuda":
        cuda.build_library(module, target, path, bare)
        return
    object_path = path.with_suffix(".o")
    try:
        compile_object(module, target, object_path, checked)
        link([object_path], path, bare, arch=target.arch)
    finally:
        object_path.unlink(missing_ok=True)


def compile_object(module: IRModule, target: Target, path: Path, checked: bool = True) -> None:
    """Compile all functions of `module` into the object file `path`; see `compile_module`.

    LLVM ends the process where it can't write, so it writes to memory.
    """
    built = compile_module(module, target, checked)
    with os.fdopen(os.memfd_create("object"), "rb") as memory:
        built.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
        path.write_bytes(memory.read())


def compile_module(module: IRModule, target: Target, checked: bool = True) -> tvm.runtime.Module:
    """Compile all functions of `module` for the CPU `target`; nothing is written.

    Parameters
    ----------
    checked
        Let functions check their arguments. It is a sixth of the work, the same for each
        candidate, and the code that computes does not depend on it.
    """
    machine = tvm_target(target)
    transform = tirx.transform
    module = transform.BindTarget(machine.with_host(machine))(module)
    loops = _lower_loops()(transform.Filter(lambda function: not has_blocks(function))(module))
    loops.update(_lower_blocks()(transform.Filter(has_blocks)(module)))
    generate = tvm.get_global_func(f"target.build.{machine.kind.name}")
    built: tvm.runtime.Module = generate(_finish(checked)(loops), machine)
    return built


def _lower_loops() -> tvm.transform.Pass:
    transform = tirx.transform
    return tvm.transform.Sequential(
        [
            transform.FlattenBuffer(),
            transform.VectorizeLoop(True),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            transform.RemoveNoOp(),
        ]
    )


def _lower_blocks() -> tvm.transform.Pass:
    blocks, loops = s_tir.transform, tirx.transform
    return tvm.transform.Sequential(
        [
            blocks.CanonicalizeLoop(),
            blocks.LowerInitBlock(),
            blocks.PlanAndUpdateBufferAllocationLocation(),
            blocks.ConvertBlocksToOpaque(),
            blocks.CompactBufferAllocation(),
            blocks.LowerMatchBuffer(),
            blocks.StmtSimplify(),
            blocks.AnnotateIrregularLoop(),
            blocks.LowerOpaqueBlock(),
            loops.FlattenBuffer(),
            loops.BF16ComputeLegalize(),
            loops.NarrowDataType(32),
            blocks.LoopPartition(),
            loops.VectorizeLoop(True),
            loops.StorageRewrite(),
            blocks.HoistIfThenElse(),
            loops.UnrollLoop(),
            blocks.RenormalizeSplitPattern(),
            loops.StmtSimplify(),
            loops.RemoveNoOp(),
            blocks.RewriteUnsafeSelect(),
        ]
    )


def _finish(checked: bool) -> tvm.transform.Pass:
    transform = tirx.transform
    return tvm.transform.Sequential(
        [
            transform.CommonSubexprElim(),
            transform.VerifyMemory(),
            transform.AnnotateEntryFunc(),
            transform.SplitHostDevice(),
            transform.MakePackedAPI(),
            *(() if checked else (transform.SkipAssert(),)),
            transform.LowerTVMBuiltin(),
            transform.LowerIntrin(),
        ]
    )
