"""Small words for writing CUDA kernels with TIR's builder: variables, branches, rings, C helpers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent
from tvmops.schedules.cuda.own_names import owned

FULL_WARP = 0xFFFFFFFF


class Scalar:
    """A variable of one thread that changes."""

    def __init__(self, value: Extent | tirx.Expr | float, dtype: str = "int32") -> None:
        self._buffer = T.alloc_local((1,), dtype)
        self.set(value)

    def __call__(self) -> Any:
        return self._buffer[0]

    def set(self, value: Any) -> None:
        T.buffer_store(self._buffer, value, [0])


@contextmanager
def when(condition: Any) -> Iterator[None]:
    with T.If(condition), T.Then():
        yield


def do(call: Any) -> None:
    """Emit a call for what it does."""
    T.evaluate(call)


def ptx(instruction: str, *operands: Any) -> None:
    """Emit one PTX instruction; its destinations come first."""
    T.evaluate(T.ptx[instruction](*operands))


def c_call(result: str, name: str, *arguments: Any, source: str) -> Any:
    """Return a call of the device function `name`, whose text is `source`."""
    name, source = owned(name, source)
    return T.cuda.func_call(name, *arguments, source_code=source, return_type=result)


_SLICE = """
__forceinline__ __device__ const void* slice_of(const void* array, int index, int rows, int pitch) {
  return static_cast<const char*>(array) + static_cast<long long>(index) * rows * pitch;
}
"""


def slice_of(array: Any, index: Any, rows: Any, columns: Any, item: int) -> Any:
    """Return the address of the `index`-th matrix of rows of `columns` elements of `item` bytes."""
    return c_call("handle", "slice_of", array, index, rows, columns * item, source=_SLICE)


_EXP2 = """
__forceinline__ __device__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
"""


def exp2(x: Any) -> Any:
    """Return 2**x, to 2 units in the last place; 0 below the normal numbers."""
    return c_call("float32", "exp2_approx", x, source=_EXP2)


_PACK = """
__forceinline__ __device__ unsigned pack_{dtype}(float low, float high) {{
  unsigned pair;
  asm("cvt.rn.{ptx}x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}}
"""
PTX_TYPES = {"float16": "f16", "bfloat16": "bf16"}


def pack(dtype: str, low: Any, high: Any) -> Any:
    """Return two floats rounded to `dtype` in one register."""
    source = _PACK.format(dtype=dtype, ptx=PTX_TYPES[dtype])
    return c_call("uint32", f"pack_{dtype}", low, high, source=source)


_SHUFFLE = """
__forceinline__ __device__ float shuffle_xor(float x, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, x, mask);
}
"""


def shuffle_xor(x: Any, mask: int) -> Any:
    """Return `x` of the lane whose number differs by `mask`."""
    return c_call("float32", "shuffle_xor", x, mask, source=_SHUFFLE)


def tie(registers: Any, count: int, kind: str = "f") -> None:
    """Keep code that uses `registers` on its side of this point.

    wgmma writes them behind the compiler's back; waiting alone says nothing about them. They hold
    floats, or integers: `kind` "r".
    """
    operands = ", ".join(f'"+{kind}"(r[{i}])' for i in range(count))
    source = f"""
__forceinline__ __device__ void tie_{count}({"float" if kind == "f" else "unsigned"}* r) {{
  asm volatile("" : {operands} :: "memory");
}}
"""
    do(c_call("void", f"tie_{count}", T.address_of(registers[0]), source=source))


_OF_NOW = """
__forceinline__ __device__ int of_now(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
"""


def of_now(x: Any) -> Any:
    """Return `x`; what is computed of it is not kept from one round of a loop to the next."""
    return Scalar(c_call("int32", "of_now", x, source=_OF_NOW))()


PROGRAMMATIC_LAUNCH = ("tirx.kernel_launch_params", ["tirx.use_programtic_dependent_launch"])


def let_next_kernel_begin() -> None:
    """Let the next kernel be launched when all blocks have come here."""
    ptx("griddepcontrol.launch_dependents")


def wait_for_kernels_before() -> None:
    """Let the next kernel be launched, and wait until those before this one are done.

    For kernels of a function with the attribute `PROGRAMMATIC_LAUNCH`; before any access of memory.
    """
    let_next_kernel_begin()
    ptx("griddepcontrol.wait")


def wait_and_let_next_begin() -> None:
    """Do both the other way round, where the next kernel's blocks would take places that this one's need."""
    ptx("griddepcontrol.wait")
    let_next_kernel_begin()


_MEET_IN_CLUSTER = """
__forceinline__ __device__ void meet_in_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
"""


def meet_in_cluster() -> None:
    """Wait until all threads of the cluster have come here, but not until others see what they wrote.

    A fence that sees to that takes as long as what is still on its way to memory.
    """
    do(c_call("void", "meet_in_cluster", source=_MEET_IN_CLUSTER))


def shared_address(buffer: Any, *indices: Any) -> Any:
    """Return the 32-bit shared-memory address of an element."""
    return T.cuda.cvta_generic_to_shared(buffer.ptr_to(list(indices)))


def swizzled(address: Any, leading: int = 1) -> Any:
    """Return wgmma's view of shared memory: columns of 64 elements of 16 bits, 128-byte swizzle.

    8 rows of a column are 1024 bytes. Where rows lie across what is summed, `leading` is the
    distance of neighbouring columns, in units of 16 bytes; otherwise it says nothing.
    """
    swizzle_128, eight_rows = 1 << 62, 64 << 32
    fixed = T.uint64(swizzle_128 | eight_rows | leading << 16)
    return fixed | T.Cast("uint64", (address >> T.uint32(4)) & T.uint32(0x3FFF))


def ask_for_box(view: Any, *place: Any) -> None:
    """Ask the L2 for the box of `view`, a tensor map, that begins at `place`, innermost first."""
    rank = len(place)
    coordinates = ", ".join(f"int x{i}" for i in range(rank))
    operands = ", ".join(f'"r"(x{i})' for i in range(rank))
    numbers = ", ".join(f"%{i + 1}" for i in range(rank))
    source = f"""
__forceinline__ __device__ void ask_for_box_{rank}d(unsigned long long map, {coordinates}) {{
  asm volatile("cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%0, {{{numbers}}}];" ::
               "l"(map), {operands} : "memory");
}}
"""
    do(c_call("void", f"ask_for_box_{rank}d", T.address_of(view), *place, source=source))


class Barriers:
    """`count` mbarriers in shared memory, each for `arrivals` arrivals a phase."""

    def __init__(self, pool: Any, count: int, arrivals: int) -> None:
        self._words = pool.alloc((count,), "uint64", align=8)
        self._count, self._arrivals = count, arrivals

    def init(self) -> None:
        """One thread does this, before all threads meet."""
        for index in range(self._count):
            ptx("mbarrier.init.shared.b64", self.at(index), T.uint32(self._arrivals))

    def at(self, index: Any) -> Any:
        return self._words.ptr_to([index])

    def wait(self, index: Any, phase: Any) -> None:
        do(T.cuda.mbarrier_wait(self.at(index), phase))

    def arrive(self, index: Any) -> None:
        ptx("mbarrier.arrive.shared.b64", self.at(index), T.uint32(1))

    def expect(self, index: Any, nbytes: int) -> None:
        """Arrive, and let the phase end only when `nbytes` have been copied."""
        ptx("mbarrier.arrive.expect_tx.shared.b64", self.at(index), T.uint32(nbytes))


class Position:
    """Where one thread stands in a ring of `stages`: the stage, and the parity of its round."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._stage, self._phase = Scalar(0), Scalar(0)

    @property
    def stage(self) -> Any:
        return self._stage()

    @property
    def phase(self) -> Any:
        return self._phase()

    def advance(self) -> None:
        if self._stages == 1:
            self._phase.set(self.phase ^ 1)
            return
        self._stage.set(self.stage + 1)
        with when(self.stage == self._stages):
            self._stage.set(0)
            self._phase.set(self.phase ^ 1)

    def skip(self, count: Any) -> None:
        """Pass over the next `count` stages."""
        total = Scalar(self.stage + count)()
        rounds = Scalar(T.truncdiv(total, self._stages))()
        self._stage.set(total - rounds * self._stages)
        self._phase.set(self.phase ^ T.truncmod(rounds, 2))


class Ring:
    """Stages of shared memory that `producers` fill and `consumers` empty."""

    def __init__(self, pool: Any, stages: int, consumers: int, producers: int = 1) -> None:
        self.stages = stages
        self.full, self.empty = Barriers(pool, stages, producers), Barriers(pool, stages, consumers)

    def init(self) -> None:
        self.full.init()
        self.empty.init()


def tensor_map(
    array: Any,
    dtype: str,
    dims: list[Extent],
    box: list[int],
    steps: list[int] | None = None,
    pitches: list[Extent] | None = None,
) -> Any:
    """Describe an array to the copy engine, for boxes of rows of 32, 64 or 128 bytes, swizzled by them.

    Parameters
    ----------
    dims
        Sizes, innermost first. What a box has beyond them is read as 0 and not written.
    box
        Sizes of one copy; `box[0]` elements are a row of it.
    steps
        From one element of a copy to the next, along each dimension; a box counts those between.
    pitches
        Bytes from one element to the next, along each dimension but the first; row-major without.
    """
    item = 2
    strides: list[Extent] = pitches or [dims[0] * item]
    for size in [] if pitches else dims[1:-1]:
        strides.append(_wide(strides[-1]) * size)
    rank = len(dims)
    var = T.Bind(T.tvm_stack_alloca("tensormap", 1), T.handle("tensormap"))
    interleave, swizzle, l2_256, zeros = 0, {32: 1, 64: 2, 128: 3}[box[0] * item], 2, 0
    do(
        T.call_packed(
            "runtime.cuTensorMapEncodeTiled", var, dtype, rank, array.data, *dims, *strides, *box,
            *(steps or [1] * rank), interleave, swizzle, l2_256, zeros,
        )
    )  # fmt: skip
    return var


def _wide(value: Extent) -> Extent:
    return value if isinstance(value, int) else tirx.Cast("int64", value)
