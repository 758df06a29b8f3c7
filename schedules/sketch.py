"""Schedules that MetaSchedule's sketch rules derive from an op's tensor expression alone.

A config is a trace: the steps of a schedule and the decisions drawn for them, as JSON text.
Replayed on the expression it gives the same program again, so a record needs nothing else.

The rules are TVM's for CPUs and for CUDA cores (L. Zheng et al., Ansor, OSDI 2020, section 4;
J. Shao et al., Tensor Program Optimization with Probabilistic Programs, NeurIPS 2022).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import DataType, IRModule, s_tir, te, tirx
from tvm.s_tir import meta_schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.buffer import is_buffer_var
from tvm.tirx.script.builder import ir as T

from tvmops.errors import KnobError
from tvmops.ops import op_of
from tvmops.schedules.cpu.emit import refuse_overlap
from tvmops.schedules.cpu.plain import plain_schedule
from tvmops.schedules.cuda import plain as cuda_plain
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import SIGNATURES
from tvmops.signatures.dtypes import FLOAT8, stored
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, KnobValue, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_VECTOR_BYTES = 16  # that a thread of a GPU reads at once
_SHARED_BYTES = 48 << 10  # of a block: more must be asked for at a launch


@dataclass(frozen=True)
class TraceSpace(Space):
    """All traces that the sketch rules can draw for `module`: too many to list."""

    module: IRModule
    target: Target

    def __contains__(self, config: object) -> bool:
        return isinstance(config, Config) and [name for name, _ in config.items] == ["trace"]

    def config(self, knobs: Mapping[str, KnobValue]) -> Config:
        if list(knobs) != ["trace"] or not isinstance(knobs["trace"], str):
            raise KnobError(
                template=self.template, knob="all", value=", ".join(knobs), expected="'trace', a JSON text"
            )
        return Config.of(trace=knobs["trace"])


class Sketch(Template):
    name = "sketch"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        # of attention the rules would make kernels that hold all scores; and they take no scalars
        if workload.is_generic or workload.ranges or workload.op == "attention":
            return False
        if target.kind not in ("cpu", "cuda"):
            return False
        op = op_of(workload)
        if SIGNATURES[workload.op].scalars(workload):
            return False
        dtypes = {spec.dtype for spec in (*op.inputs(workload), *op.outputs(workload))}
        if target.gpu is not None:  # whose callers pack no weights, but those of integers
            is_packed = dict(workload.items).get("packed", PLAIN) != PLAIN
            return not is_packed and not dtypes & {*FLOAT8}
        return all(dtype == stored(dtype) for dtype in dtypes)  # they don't take bits

    def space(self, workload: Workload, target: Target) -> TraceSpace:
        module = _program(workload, target)
        return TraceSpace(self.name, (), lambda config: True, module, target)

    def default(self, workload: Workload, target: Target) -> Config:
        module = _program(workload, target)
        if target.gpu is not None:
            return config_of(cuda_plain.plain_schedule(module).trace)
        return config_of(plain_schedule(module, target.vector_width("float32")).trace)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # the rules need known sizes

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = replay(_program(workload, target), config).mod
        if target.gpu is not None:
            return module
        function = module["main"]
        *inputs, output = filter(is_buffer_var, function.params)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            refuse_overlap(output, {buffer.name: buffer for buffer in inputs})
        checks = builder.get().body
        return IRModule({"main": function.with_body(tirx.SeqStmt([checks, function.body]))})


def tensor_program(workload: Workload, alignment: int = 1) -> IRModule:
    """Return the op's tensor expression as a function `main` of plain loops over blocks.

    Arrays may start at any element whose address is a multiple of `alignment`.
    """
    function = te.create_prim_func(op_of(workload).expression(workload))
    unaligned = {
        buffer: tirx.decl_buffer(
            buffer.shape,
            buffer.dtype,
            buffer.name,
            data_alignment=max(alignment, DataType(buffer.dtype).itemsize),
        )
        for buffer in function.params
        if is_buffer_var(buffer)
    }
    function = tvm_ffi.structural_map(function, (tvm.ir.Var, lambda var: unaligned.get(var, var)))
    return IRModule({"main": function.with_attr("global_symbol", "main")})


def _program(workload: Workload, target: Target) -> IRModule:
    return tensor_program(workload, _VECTOR_BYTES if target.gpu is not None else 1)


def needs_workspace(schedule: s_tir.Schedule, target: Target) -> bool:
    """True if a kernel leaves results for a later one in a GPU's memory, of which none is allocated."""
    if target.gpu is None:
        return False
    root = schedule.get(schedule.get_sblock("root"))
    return any(buffer.scope() == "global" for buffer in root.alloc_buffers)


def tune_context(
    module: IRModule,
    target: Target,
    seed: int,
    search: meta_schedule.SearchStrategy | None = None,
    threads: int = 1,
) -> meta_schedule.TuneContext:
    """Return MetaSchedule's view of a search for schedules of `module`.

    With more than one thread, what a seed draws depends on which of them was first.

    It is made without `TuneContext`'s own constructor, which imports the tensor intrinsics of
    every machine TVM knows: 10 s and more, and these rules use none. It logs nothing.
    """
    kind = "cuda" if target.gpu is not None else "llvm"
    rules = meta_schedule.space_generator.PostOrderApply(
        sch_rules=_rules(kind), postprocs=kind, mutator_probs=kind
    )
    make = tvm.get_global_func("s_tir.meta_schedule.TuneContext")
    context = make(module, _machine(target), rules, search, "main", threads, seed + 1, lambda *message: None)
    tvm.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(context)
    return context


def _machine(target: Target) -> tvm.target.Target:
    if target.gpu is not None:
        return tvm.target.Target({**target.tvm, "max_shared_memory_per_block": _SHARED_BYTES})
    return tvm.target.Target({**target.tvm, "num-cores": target.cores})


def _rules(kind: str) -> list[meta_schedule.ScheduleRule]:
    """Return TVM's rules, but for LLVM unroll to 256 steps at most, not to 512.

    512 steps of 64 lanes take seconds to compile, do not fit the instruction cache and never win.
    """
    rules = list(meta_schedule.ScheduleRule.create(kind))
    if kind != "llvm":
        return rules
    unroll = meta_schedule.schedule_rule.ParallelizeVectorizeUnroll(
        max_jobs_per_core=16, max_vectorize_extent=64, unroll_max_steps=[0, 16, 64, 256], unroll_explicit=True
    )
    return [unroll if isinstance(rule, type(unroll)) else rule for rule in rules]


def config_of(trace: s_tir.schedule.Trace) -> Config:
    """Return the config that `replay` turns into a schedule with this trace."""
    steps = trace.as_json()
    return Config.of(trace=json.dumps(steps, default=lambda number: number.value, separators=(",", ":")))


def replay(module: IRModule, config: Config) -> s_tir.Schedule:
    """Return `module` scheduled as `config` says."""
    schedule = s_tir.Schedule(module)
    s_tir.schedule.Trace.apply_json_to_schedule(json.loads(str(config["trace"])), schedule)
    return schedule
