"""How warps, then the blocks of a cluster, bring their sums together, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_chunk import Chunk, finite
from tvmops.schedules.cuda.kernels.attention_shares import COLUMNS
from tvmops.schedules.cuda.kernels.column_sums import add_four
from tvmops.schedules.cuda.words import Scalar, c_call, do, exp2, ptx, shared_address, shuffle_xor, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_FOUR = 4  # neighbouring heads that a thread adds up
_SAVE_TWO = """
__forceinline__ __device__ void save_two(void* place, float a, float b) {
  *static_cast<float2*>(place) = make_float2(a, b);
}
"""
# To the same place of another block, whose barrier counts the bytes that come.
_SEND_FOUR = """
__forceinline__ __device__ void send_four(const void* place, const void* barrier, int rank,
                                          float a, float b, float c, float d) {
  unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(place)), remote;
  unsigned counter = static_cast<unsigned>(__cvta_generic_to_shared(barrier)), its;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(to), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(its) : "r"(counter), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
               "r"(remote), "f"(a), "f"(b), "f"(c), "f"(d), "r"(its) : "memory");
}
"""
_SEND_TWO = """
__forceinline__ __device__ void send_two(const void* place, const void* barrier, int rank, float a, float b) {
  unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(place)), remote;
  unsigned counter = static_cast<unsigned>(__cvta_generic_to_shared(barrier)), its;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(to), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(its) : "r"(counter), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
               "r"(remote), "f"(a), "f"(b), "r"(its) : "memory");
}
"""
_CLUSTER = """
__forceinline__ __device__ void {name}() {{
  asm volatile("{instruction}" ::: "memory");
}}
"""
_ARRIVE, _WAIT = "barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"


class Meeting:
    """Begins when a block begins: to send to a block, one must know that it has.

    Each block finishes some rows of out^T, a few elements of all heads. What the others have of these
    comes to its shared memory; a barrier there counts the bytes.
    """

    def __init__(self, kernel: SplitKernel) -> None:
        self.kernel = kernel
        split = kernel.split
        if split.splits == 1:
            return
        with when(kernel.thread == 0):
            kernel.all_here.init()
            ptx("fence.mbarrier_init.release.cluster")
            kernel.all_here.expect(0, split.splits * kernel.packed * 4 * (kernel.own_rows + 2))
        do(T.cuda.warp_sync())
        self._of_cluster("say_here", _ARRIVE)

    def hold(self, chunk: Chunk) -> None:
        """Add up what the warps and blocks have in their registers, and write it."""
        self.held = chunk
        kernel = self.kernel
        self._agree()
        self._share()
        quads = kernel.packed // _FOUR
        self._each(kernel.sizes.head_dim * quads, lambda at: self._add_warps(at // quads, at % quads * _FOUR))
        if kernel.split.splits > 1:
            self._each(kernel.split.splits * kernel.packed, self._send_scale)
            do(T.cuda.mbarrier_wait_acquire_cluster(kernel.all_here.at(0), 0))
            self._each(kernel.group * kernel.own_rows, self._finish)

    def _agree(self) -> None:
        """Bring this warp's sums to the block's maxima."""
        kernel, held = self.kernel, self.held
        for head in range(kernel.tiles * 2):
            for distance in (4, 8, 16):
                more = shuffle_xor(held.total[head], distance)
                T.buffer_store(held.total, held.total[head] + more, [head])
        self._note(kernel.mosts, held.most)
        if kernel.split.splits > 1:
            self._of_cluster("await_all_here", _WAIT)  # memory of a block that has not begun is no place
        do(T.cuda.cta_sync())  # the rings are free, too
        for head in range(kernel.tiles * 2):
            column = head // 2 * COLUMNS + kernel.lane % 4 * 2 + head % 2
            worth = exp2(held.most[head] - finite(self._most(column)))
            worth = Scalar(worth, "float32")()
            T.buffer_store(held.total, held.total[head] * worth, [head])
            for part in range(kernel.parts):
                for half in range(2):
                    at = (head // 2 * kernel.parts + part) * 4 + half * 2 + head % 2
                    T.buffer_store(held.rows, held.rows[at] * worth, [at])

    def _note(self, memory: Any, values: Any) -> None:
        with when(self.kernel.lane < 4):
            for head in range(self.kernel.tiles * 2):
                column = head // 2 * COLUMNS + self.kernel.lane * 2 + head % 2
                T.buffer_store(memory, values[head], [self.kernel.warp, column])

    def _most(self, column: Any) -> Any:
        most = Scalar(self.kernel.mosts[0, column], "float32")
        for warp in range(1, self.kernel.split.warps):
            most.set(tirx.max(most(), self.kernel.mosts[warp, column]))
        return most()

    def _total(self, column: Any) -> Any:
        total = Scalar(self.kernel.totals[0, column], "float32")
        for warp in range(1, self.kernel.split.warps):
            total.set(total() + self.kernel.totals[warp, column])
        return total()

    def _share(self) -> None:
        """Show the other warps what this one has."""
        kernel, held = self.kernel, self.held
        self._note(kernel.totals, held.total)
        for tile in range(kernel.tiles):
            column = tile * COLUMNS + kernel.lane % 4 * 2
            with when(column < kernel.packed):
                for i in range(kernel.parts * 2):
                    row = i // 2 * 16 + i % 2 * 8 + T.truncdiv(kernel.lane, 4)
                    at = (tile * kernel.parts * 2 + i) * 2
                    place = kernel.sums.ptr_to([kernel.warp, row, column])
                    do(c_call("void", "save_two", place, held.rows[at], held.rows[at + 1], source=_SAVE_TWO))
        do(T.cuda.cta_sync())

    def _each(self, count: int, visit: Callable[[Any], None]) -> None:
        """Call `visit(at)` for all of `count`, by turns of the threads."""
        threads = self.kernel.split.threads
        with T.serial(-(-count // threads)) as step:
            at = T.Bind(step * threads + self.kernel.thread)
            with when(at < count):
                visit(at)

    def _add_warps(self, row: Any, column: Any) -> None:
        kernel = self.kernel
        row, column = T.Bind(row), T.Bind(column)
        warps = range(kernel.split.warps)
        values = add_four([(shared_address(kernel.sums, warp, row, column),) for warp in warps])
        if kernel.split.splits > 1:
            owner, place = T.truncdiv(row, kernel.own_rows), T.truncmod(row, kernel.own_rows)
            to, barrier = kernel.received.ptr_to([kernel.rank, place, column]), kernel.all_here.at(0)
            do(c_call("void", "send_four", to, barrier, owner, *values, source=_SEND_FOUR))
            return
        for i in range(min(_FOUR, kernel.group)):
            with when(column + i < kernel.group):
                self._write(column + i, row, self._total(column + i), values[i])

    def _send_scale(self, at: Any) -> None:
        kernel = self.kernel
        owner, head = T.Bind(T.truncdiv(at, kernel.packed)), T.Bind(T.truncmod(at, kernel.packed))
        to, barrier = kernel.received_scales.ptr_to([kernel.rank, head, 0]), kernel.all_here.at(0)
        scale = self._most(head), self._total(head)
        do(c_call("void", "send_two", to, barrier, owner, *scale, source=_SEND_TWO))

    def _finish(self, at: Any) -> None:
        """Add up what all blocks have sent of an element."""
        kernel = self.kernel
        head, row = T.Bind(T.truncdiv(at, kernel.own_rows)), T.Bind(T.truncmod(at, kernel.own_rows))
        ranks = range(kernel.split.splits)
        mosts = [Scalar(kernel.received_scales[rank, head, 0], "float32")() for rank in ranks]
        most = Scalar(mosts[0], "float32")
        for other in mosts[1:]:
            most.set(tirx.max(most(), other))
        base = Scalar(finite(most()), "float32")
        total, value = Scalar(T.float32(0), "float32"), Scalar(T.float32(0), "float32")
        for rank in ranks:
            worth = Scalar(exp2(mosts[rank] - base()), "float32")
            total.set(total() + kernel.received_scales[rank, head, 1] * worth())
            value.set(value() + kernel.received[rank, row, head] * worth())
        self._write(head, kernel.rank * kernel.own_rows + row, total(), value())

    def _of_cluster(self, name: str, instruction: str) -> None:
        do(c_call("void", name, source=_CLUSTER.format(name=name, instruction=instruction)))

    def _write(self, head: Any, row: Any, total: Any, value: Any) -> None:
        kernel = self.kernel
        result = tirx.Select(total == 0, T.float32(0), value / total)
        at = [kernel.sequence, kernel.head * kernel.group + head, 0, row]
        T.buffer_store(kernel.out, T.Cast(kernel.sizes.dtype, result), at)
