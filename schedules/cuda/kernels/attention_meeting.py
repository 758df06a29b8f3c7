"""How warps, then the blocks of a cluster, bring their sums together, in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.attention_chunk import Chunk, finite
from tvmops.schedules.cuda.kernels.attention_shares import COLUMNS
from tvmops.schedules.cuda.words import Scalar, c_call, do, exp2, shuffle_xor, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.attention_split import SplitKernel

_SEND = """
__forceinline__ __device__ void send_to_block(const void* place, int rank, float value) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(place)), remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" :: "r"(remote), "f"(value) : "memory");
}
"""
_CLUSTER = """
__forceinline__ __device__ void {name}() {{
  asm volatile("{instructions}" ::: "memory");
}}
"""
_ARRIVE, _WAIT = "barrier.cluster.arrive.{order}.aligned;", "barrier.cluster.wait.acquire.aligned;"


class Meeting:
    """Begins when a block begins: to send to a block, one must know that it has."""

    def __init__(self, kernel: SplitKernel) -> None:
        self.kernel = kernel
        if kernel.split.splits > 1:
            self._of_cluster("say_here", _ARRIVE.format(order="relaxed"))

    def hold(self, chunk: Chunk) -> None:
        """Add up what the warps and blocks have in their registers, and write it."""
        self.held = chunk
        split = self.kernel.split
        if split.splits > 1:
            self._of_cluster("await_all_here", _WAIT)  # memory of a block that has not begun is no place
        self._add_warps()
        if split.splits > 1:
            self._of_cluster("meet_cluster", _ARRIVE.format(order="release") + _WAIT)
            self._finish()

    def _add_warps(self) -> None:
        split, dim = self.kernel.split, self.kernel.sizes.head_dim
        for tile in range(self.kernel.tiles):
            for column in range(2):
                head = tile * 2 + column
                for distance in (4, 8, 16):
                    more = shuffle_xor(self.held.total[head], distance)
                    T.buffer_store(self.held.total, self.held.total[head] + more, [head])
        do(T.cuda.cta_sync())  # the rings are free
        with when(self.kernel.lane < 4):
            for tile in range(self.kernel.tiles):
                for column in range(2):
                    at = [self.kernel.warp, tile * COLUMNS + self.kernel.lane * 2 + column]
                    T.buffer_store(self.kernel.mosts, self.held.most[tile * 2 + column], at)
                    T.buffer_store(self.kernel.totals, self.held.total[tile * 2 + column], at)
        for tile in range(self.kernel.tiles):
            for i in range(self.kernel.parts * 4):
                row = i // 4 * 16 + i % 4 // 2 * 8 + T.truncdiv(self.kernel.lane, 4)
                column = tile * COLUMNS + self.kernel.lane % 4 * 2 + i % 2
                value = self.held.rows[tile * self.kernel.parts * 4 + i]
                T.buffer_store(self.kernel.sums, value, [self.kernel.warp, column, row])
        do(T.cuda.cta_sync())
        size = self.kernel.group * dim
        with T.serial(-(-size // split.threads)) as step:
            at = step * split.threads + self.kernel.thread
            with when(at < size):
                self._add_warps_at(T.truncdiv(at, dim), T.truncmod(at, dim))

    def _add_warps_at(self, head: Any, column: Any) -> None:
        warps = range(self.kernel.split.warps)
        most, total, value = _joined(
            [self.kernel.mosts[w, head] for w in warps],
            [self.kernel.totals[w, head] for w in warps],
            [self.kernel.sums[w, head, column] for w in warps],
        )
        if self.kernel.split.splits == 1:
            self._write(head, column, total, value)
            return
        owner, place = T.truncmod(head, self.kernel.split.splits), T.truncdiv(head, self.kernel.split.splits)
        self._send(self.kernel.received, [self.kernel.rank, place, column], owner, value)
        with when(column == 0):
            self._send(self.kernel.received_mosts, [self.kernel.rank, place], owner, most)
            self._send(self.kernel.received_totals, [self.kernel.rank, place], owner, total)

    def _of_cluster(self, name: str, instructions: str) -> None:
        do(c_call("void", name, source=_CLUSTER.format(name=name, instructions=instructions)))

    def _send(self, memory: Any, place: list[Any], rank: Any, value: Any) -> None:
        do(c_call("void", "send_to_block", memory.ptr_to(place), rank, value, source=_SEND))

    def _finish(self) -> None:
        """Add up what all blocks have sent of this one's heads."""
        split, dim = self.kernel.split, self.kernel.sizes.head_dim
        size = split.finished(self.kernel.group) * dim
        with T.serial(-(-size // split.threads)) as step:
            at = step * split.threads + self.kernel.thread
            place, column = T.truncdiv(at, dim), T.truncmod(at, dim)
            head = place * split.splits + self.kernel.rank
            with when(tirx.all(at < size, head < self.kernel.group)):
                ranks = range(split.splits)
                _, total, value = _joined(
                    [self.kernel.received_mosts[rank, place] for rank in ranks],
                    [self.kernel.received_totals[rank, place] for rank in ranks],
                    [self.kernel.received[rank, place, column] for rank in ranks],
                )
                self._write(head, column, total, value)

    def _write(self, head: Any, column: Any, total: Any, value: Any) -> None:
        result = tirx.Select(total == 0, T.float32(0), value / total)
        at = [self.kernel.sequence, self.kernel.head * self.kernel.group + head, 0, column]
        T.buffer_store(self.kernel.out, T.Cast(self.kernel.sizes.dtype, result), at)


def _joined(mosts: list[Any], totals: list[Any], values: list[Any]) -> tuple[Any, Any, Any]:
    """Return the common maximum of several sums, their total, and the sum of their values."""
    most = Scalar(mosts[0], "float32")
    for other in mosts[1:]:
        most.set(tirx.max(most(), other))
    base = Scalar(finite(most()), "float32")
    total, value = Scalar(T.float32(0), "float32"), Scalar(T.float32(0), "float32")
    for own_most, own_total, own_value in zip(mosts, totals, values):
        worth = Scalar(exp2(own_most - base()), "float32")
        total.set(total() + own_total * worth())
        value.set(value() + own_value * worth())
    return most(), total(), value()
