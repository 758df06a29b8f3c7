"""A template whose configs fail in every way that is known. Workers import it, too."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import numpy as np
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

MARKER = "FAULTY_MARKER"  # environment: a file that the "killed" kernel makes when it runs
HUGE = 100 << 30  # bytes

STATUSES = {
    # what the compiler does
    "raises": "compile",
    "takes all memory": "memory",
    "exits": "compile",
    "segfaults": "compile",
    "never ends": "timeout",
    # what the kernel does
    "leaves a symbol open": "crash",
    "wild store": "crash",
    "endless loop": "timeout",
    "100 GB": "memory",
    "exit": "crash",
    "abort": "crash",
    "killed": "crash",
    "wrong values": "wrong",
    "one wrong value": "wrong",
    "NaN": "wrong",
    "unwritten row": "wrong",
    "unwritten": "wrong",
    "writes to input": "wrong",
    "writes outside": "wrong",
    "overwrites inputs": "wrong",
}


class Faulty(Template):
    """A slow matmul that does what its knob `fault` says. `burden` is how often it is computed."""

    name = "faulty"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (Knob("fault", ("", *STATUSES)), Knob("burden", (1, 20, 40)))
        return Space(self.name, knobs, lambda config: config["fault"] == "" or config["burden"] == 1)

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(fault="", burden=20)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return {"burden": config.number("burden"), "fault": float(bool(config["fault"]))}

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        fault = str(config["fault"])
        spoil_compiler(fault)
        m, n, k = workload.dims("m", "n", "k")
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            handles = [T.arg(name, T.handle()) for name in "abc"]
            a = T.match_buffer(handles[0], (m, k), "float32", align=4)
            b = T.match_buffer(handles[1], (k, n), "float32", align=4)
            c = T.match_buffer(handles[2], (m, n), "float32", align=4)
            before(fault)
            with T.serial(config.number("burden")):
                multiply(a, b, c, rows=m - (fault == "unwritten row"))
                T.evaluate(tirx.call_extern("int32", "getppid"))  # or the compiler sees that once is enough
            after(fault, a, b, c, m, n)
        return IRModule({"main": builder.get()})


def spoil_compiler(fault: str) -> None:
    if fault == "raises":
        raise ValueError("a compiler's long complaint " * 200 + "and the reason")
    if fault == "takes all memory":
        np.ones(HUGE, np.uint8)
    elif fault == "exits":
        os._exit(3)
    elif fault == "segfaults":
        ctypes.string_at(0)
    while fault == "never ends":
        time.sleep(1)


def before(fault: str) -> None:
    """Emit what goes wrong before anything is computed."""
    zero = tirx.const(0, "int32")
    if fault == "leaves a symbol open":
        extern("int32", "no_such_function_anywhere")
    elif fault == "endless loop":
        with T.While(tirx.call_extern("int32", "getppid") != zero):
            extern("int32", "getpid")
    elif fault == "100 GB":
        hog = T.alloc_buffer((HUGE,), "int8")
        with T.serial(HUGE // 4096) as page:
            T.buffer_store(hog, tirx.const(1, "int8"), [page * tirx.const(4096, "int64")])
    elif fault == "exit":
        extern("int32", "exit", zero)
    elif fault == "abort":
        extern("int32", "abort")
    elif fault == "killed":
        extern("int32", "creat", os.environ[MARKER], tirx.const(0o600, "int32"))
        extern("uint32", "sleep", tirx.const(600, "uint32"))
    elif fault == "crashes at the third call":
        abort_at_third_call()
    elif fault == "kills its parent":
        extern("int32", "kill", tirx.call_extern("int32", "getppid"), tirx.const(9, "int32"))
    elif fault == "sleeps once":
        sleep_once()


def abort_at_third_call() -> None:
    """Count calls by the seconds that are left of an alarm: a process has one of it."""
    left = T.alloc_buffer((1,), "uint32", scope="local")
    T.buffer_store(left, tirx.call_extern("uint32", "alarm", tirx.const(0, "uint32")), [0])
    extern("uint32", "alarm", left[0] + tirx.const(1000, "uint32"))
    with T.If(left[0] > tirx.const(1500, "uint32")), T.Then():
        extern("int32", "abort")


def sleep_once() -> None:
    """Sleep, unless another did before; a file in the working folder says who."""
    new, mode = tirx.const(os.O_CREAT | os.O_EXCL, "int32"), tirx.const(0o600, "int32")
    made = tirx.call_extern("int32", "open", os.environ[MARKER], new, mode)
    with T.If(made >= tirx.const(0, "int32")), T.Then():
        extern("int32", "creat", "asleep", mode)
        extern("uint32", "sleep", tirx.const(600, "uint32"))


def multiply(a: Any, b: Any, c: Any, rows: int) -> None:
    with T.serial(rows) as i, T.serial(c.shape[1]) as j:
        T.buffer_store(c, tirx.const(0, "float32"), [i, j])
        with T.serial(a.shape[1]) as k:
            T.buffer_store(c, c[i, j] + a[i, k] * b[k, j], [i, j])


def after(fault: str, a: Any, b: Any, c: Any, m: int, n: int) -> None:
    """Emit what spoils the result."""
    one = tirx.const(1, "float32")
    if fault == "wild store":
        T.buffer_store(c, one, [tirx.const(1 << 40, "int64"), 0])
    elif fault == "wrong values":
        with T.serial(m) as i, T.serial(n) as j:
            T.buffer_store(c, c[i, j] * tirx.const(1.01, "float32"), [i, j])
    elif fault == "one wrong value":
        T.buffer_store(c, c[m - 1, n - 1] + one, [m - 1, n - 1])
    elif fault == "NaN":
        T.buffer_store(c, tirx.const(float("nan"), "float32"), [0, 0])
    elif fault == "unwritten":
        with T.serial(m) as i, T.serial(n) as j:
            T.buffer_store(c, tirx.const(float("nan"), "float32"), [i, j])
    elif fault == "writes to input":
        T.buffer_store(a, one, [0, 0])
    elif fault == "writes outside":
        T.buffer_store(c, one, [m, 0])
    elif fault == "overwrites inputs":
        with T.serial(m * 8) as i:
            T.buffer_store(b, one, [i, 0])


def extern(dtype: str, name: str, *arguments: Any) -> None:
    T.evaluate(tirx.call_extern(dtype, name, *arguments))


class Sixty(Faulty):
    """Sixty configs: of one the kernel crashes, of one it sleeps the first time."""

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (Knob("fault", ("", "wild store", "sleeps once")), Knob("burden", tuple(range(1, 59))))
        return Space(self.name, knobs, lambda config: config["fault"] == "" or config["burden"] == 1)


def faulty(fault: str, burden: int = 1) -> Config:
    return Config.of(fault=fault, burden=burden)
