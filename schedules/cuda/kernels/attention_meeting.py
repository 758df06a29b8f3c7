"""How warps, then the blocks of a cluster, bring their sums together, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_chunk import Chunk, finite
from tvmops.schedules.cuda.kernels.attention_parts import finish, leave_part
from tvmops.schedules.cuda.kernels.attention_shares import COLUMNS, MET, PAD, SUMMED
from tvmops.schedules.cuda.kernels.neighbours import FOUR
from tvmops.schedules.cuda.words import Scalar, c_call, do, exp2, let_next_kernel_begin, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_ADD_SCALED = """
__forceinline__ __device__ void add_scaled_four(float* sums, const void* from, float factor) {
  const float4 values = *static_cast<const float4*>(from);
  sums[0] += values.x * factor;
  sums[1] += values.y * factor;
  sums[2] += values.z * factor;
  sums[3] += values.w * factor;
}
"""
# To the same place of another block, whose barrier counts the bytes that come.
SEND_FOUR = """
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
SEND_TWO = """
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
_ARRIVE, _WAIT = "barrier.cluster.arrive.relaxed.aligned;", "barrier.cluster.wait.acquire.aligned;"


def say_here() -> None:
    """Tell the other blocks of the cluster that this one has begun."""
    do(c_call("void", "say_here", source=_CLUSTER.format(name="say_here", instruction=_ARRIVE)))


def await_all_here() -> None:
    """Wait until all blocks of the cluster have said so; what each wrote before that may not be seen yet."""
    do(c_call("void", "await_all_here", source=_CLUSTER.format(name="await_all_here", instruction=_WAIT)))


class Meeting:
    """Begins when a block begins: to send to a block, one must know that it has.

    Each block finishes some of the heads. What the others have of these comes to its shared memory;
    a barrier there counts the bytes, so that no block waits for more than it needs.
    """

    def __init__(self, kernel: SplitKernel) -> None:
        self.kernel = kernel
        split = kernel.split
        if split.splits == 1:
            return
        self.finishes = T.Bind(T.truncdiv(kernel.group - kernel.rank + (split.splits - 1), split.splits))
        with when(kernel.thread == 0):
            kernel.all_here.init()
            ptx("fence.mbarrier_init.release.cluster")
        do(T.cuda.warp_sync())
        say_here()

    def hold(self, chunk: Chunk) -> None:
        """Add up what the warps and blocks have in their registers, and write it."""
        self.held = chunk
        split = self.kernel.split
        if split.splits > 1:
            await_all_here()  # memory of a block that has not begun is no place
            with when(self.kernel.thread == 0):
                nbytes = split.splits * 4 * (self.kernel.sizes.head_dim + 2)  # of a head
                self.kernel.all_here.expect(0, T.Cast("uint32", self.finishes * nbytes))
        self._share()
        if split.early == SUMMED or (split.early == MET and split.splits == 1):
            self._let_go()
        self._add_warps()
        if split.splits > 1:
            with when(self.finishes > 0):
                do(T.cuda.mbarrier_wait_acquire_cluster(self.kernel.all_here.at(0), 0))
                if split.early == MET:
                    self._let_go()
                self._each(self.finishes, split.finished(self.kernel.group), self._finish_at)

    def _let_go(self) -> None:
        """Let the next kernel begin.

        Clusters that find places as those of this kernel leave them are spread as these were. Those
        that come earlier crowd what is left, which only short kernels make up for.
        """
        if self.kernel.chained:
            let_next_kernel_begin()

    def _share(self) -> None:
        """Show the other warps what this one has, in its own ring: they may still need theirs."""
        kernel, held = self.kernel, self.held
        do(T.cuda.warp_sync())
        with when(kernel.lane < 4):
            for tile in range(kernel.tiles):
                for column in range(2):
                    at = [kernel.warp, tile * COLUMNS + kernel.lane * 2 + column]
                    T.buffer_store(kernel.mosts, held.most[tile * 2 + column], at)
                    T.buffer_store(kernel.totals, held.totals[tile * 4 + column], at)
        for tile in range(kernel.tiles):
            for i in range(kernel.parts * 4):
                row = i // 4 * 16 + i % 4 // 2 * 8 + T.truncdiv(kernel.lane, 4)
                column = tile * COLUMNS + kernel.lane % 4 * 2 + i % 2
                value = held.rows[tile * kernel.parts * 4 + i]
                T.buffer_store(kernel.sums, value, [kernel.warp, self._at(column, row)])
        do(T.cuda.cta_sync())

    def _at(self, head: Any, column: Any) -> Any:
        """Return where a warp's sum of `head` is."""
        return head * (self.kernel.sizes.head_dim + PAD) + column

    def _add_warps(self) -> None:
        self._each(self.kernel.group, self.kernel.group, self._add_warps_at)

    def _add_warps_at(self, head: Any, column: Any) -> None:
        kernel, warps = self.kernel, range(self.kernel.split.warps)
        most, total, values = joined(
            [kernel.mosts[w, head] for w in warps],
            [kernel.totals[w, head] for w in warps],
            [kernel.sums.ptr_to([w, self._at(head, column)]) for w in warps],
        )
        if kernel.split.splits == 1:
            self._write(head, column, most, total, values)
        else:
            self._send(head, column, most, total, values)

    def _each(self, heads: Any, most_heads: int, visit: Callable[[Any, Any], None]) -> None:
        """Call `visit(head, column)` for all columns of `heads` heads, four at a time."""
        fours, threads = self.kernel.sizes.head_dim // FOUR, self.kernel.split.threads
        with T.serial(-(-most_heads * fours // threads)) as step:
            at = step * threads + self.kernel.thread
            with when(at < heads * fours):
                visit(T.Bind(T.truncdiv(at, fours)), T.Bind(T.truncmod(at, fours) * FOUR))

    def _send(self, head: Any, column: Any, most: Any, total: Any, values: list[Any]) -> None:
        kernel, splits = self.kernel, self.kernel.split.splits
        owner, place = T.Bind(T.truncmod(head, splits)), T.Bind(T.truncdiv(head, splits))
        to, barrier = kernel.received.ptr_to([kernel.rank, place, column]), kernel.all_here.at(0)
        do(c_call("void", "send_four", to, barrier, owner, *values, source=SEND_FOUR))
        with when(column == 0):
            to = kernel.received_scales.ptr_to([kernel.rank, place, 0])
            do(c_call("void", "send_two", to, barrier, owner, most, total, source=SEND_TWO))

    def _finish_at(self, place: Any, column: Any) -> None:
        """Add up what all blocks have sent."""
        kernel, ranks = self.kernel, range(self.kernel.split.splits)
        most, total, values = joined(
            [kernel.received_scales[rank, place, 0] for rank in ranks],
            [kernel.received_scales[rank, place, 1] for rank in ranks],
            [kernel.received.ptr_to([rank, place, column]) for rank in ranks],
        )
        self._write(place * kernel.split.splits + kernel.rank, column, most, total, values)

    def _write(self, head: Any, column: Any, most: Any, total: Any, values: list[Any]) -> None:
        kernel = self.kernel
        own = kernel.head * kernel.group + head
        if kernel.parts_meet:
            leave_part(kernel, kernel.sequence * kernel.sizes.heads + own, column, most, total, values)
        else:
            finish(kernel, kernel.sequence, own, column, total, values)


def joined(mosts: list[Any], totals: list[Any], places: list[Any]) -> tuple[Any, Any, list[Any]]:
    """Return the common maximum of several sums, their total, and the sums of four values at `places`."""
    most = Scalar(mosts[0], "float32")
    for other in mosts[1:]:
        most.set(tirx.max(most(), other))
    base = Scalar(finite(most()), "float32")
    total, four = Scalar(T.float32(0), "float32"), T.alloc_local((FOUR,), "float32")
    for i in range(FOUR):
        T.buffer_store(four, T.float32(0), [i])
    for own_most, own_total, place in zip(mosts, totals, places):
        worth = Scalar(exp2(own_most - base()), "float32")
        total.set(total() + own_total * worth())
        do(c_call("void", "add_scaled_four", T.address_of(four[0]), place, worth(), source=_ADD_SCALED))
    return most(), total(), [four[i] for i in range(FOUR)]
