"""`gemm_swapped` where rows begin anywhere: the copy engine takes b all the same, eight rows at a time.

It needs 16 bytes from a row to the next, but a box may begin at any element. Eight rows of 2-byte
elements are a multiple of 16 bytes whatever their length: seen as one long row, each of the eight
begins somewhere inside, and a box takes every eighth row of b. A stage so holds its rows in
another order, the first of each eight first, and what is multiplied or stored follows it.

Rows behind the last whole eight come by a second view, of the last eight rows of all. Behind the
end of a row the next one begins: where that is along k, it is cleared in shared memory. The rows
of a, few, are loaded element by element by warps of their own.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.kernels.gemm_mma import Product
from tvmops.schedules.cuda.kernels.gemm_swapped import CONSUMERS, PANEL, SwappedKernel, SwappedTiles
from tvmops.schedules.cuda.words import Position, Scalar, c_call, do, ptx, tensor_map, when

EIGHT = 8  # rows that are together a multiple of 16 bytes
_LOADERS = 4  # warps

# A thread's part of `rows` rows of a at `depth` values of k from `begin` on, to swizzled rows of 64;
# those outside low..end become 0.
_PLACE_ROWS = """
__forceinline__ __device__ void place_rows_{rows}_{depth}_{turned}(
    void* stage, const void* a, int row, int m, int pitch, int begin, int low, int end, int thread) {{
  unsigned short raw[{rows} * {depth} / 128];
#pragma unroll
  for (int i = 0; i < {rows} * {depth} / 128; ++i) {{
    const int at = i * 128 + thread, own = row + at / {depth}, k = begin + at % {depth};
    const unsigned short* from = static_cast<const unsigned short*>(a) + static_cast<long long>(own) * pitch + k;
    raw[i] = own < m && low <= k && k < end ? __ldg(from) : 0;
  }}
#pragma unroll
  for (int i = 0; i < {rows} * {depth} / 128; ++i) {{
    const int at = i * 128 + thread, own = at / {depth}, inside = at % {depth};
    const int place = {turned} ? inside % 8 * ({depth} / 8) + inside / 8 : inside;
    const int offset = place / 64 * ({rows} * 128) + own * 128 + ((place / 8 % 8 ^ own % 8) * 16) + place % 8 * 2;
    *reinterpret_cast<unsigned short*>(static_cast<char*>(stage) + offset) = raw[i];
  }}
}}
"""
# Behind `valid` of `depth` values of k, of `rows` swizzled rows: one thread of 128.
_CLEAR_ENDS = """
__forceinline__ __device__ void clear_ends_{rows}_{depth}(void* stage, int valid, int thread) {{
  for (int own = thread; own < {rows}; own += 128)
    for (int place = valid; place < {depth}; ++place) {{
      const int offset = place / 64 * ({rows} * 128) + own * 128 + ((place / 8 % 8 ^ own % 8) * 16) + place % 8 * 2;
      *reinterpret_cast<unsigned short*>(static_cast<char*>(stage) + offset) = 0;
    }}
}}
"""


class LooseKernel(SwappedKernel):
    loaders = _LOADERS

    def __init__(self, product: Product, tiles: SwappedTiles, loose_b: bool) -> None:
        super().__init__(product, tiles)
        self.turns_k = loose_b and not product.trans_b  # k, in a stage, is in the order of eights
        self.turns_n = loose_b and product.trans_b

    def _maps(self) -> None:
        if not (self.turns_k or self.turns_n):
            super()._maps()
            return
        p, t = self.product, self.tiles
        rows, columns = (p.n, p.k) if p.trans_b else (p.k, p.n)
        box = [PANEL, (t.lines if p.trans_b else t.bk) // EIGHT]
        self.b_map = tensor_map(self.b, p.dtype, [columns * EIGHT, T.truncdiv(rows, EIGHT)], box)
        begin = (rows - EIGHT) * columns  # of the last eight
        first = begin - T.truncmod(begin, EIGHT)
        memory = T.address_of(self.b[T.truncdiv(first, columns), T.truncmod(first, columns)])
        dims = [columns * EIGHT + T.truncmod(begin, EIGHT), 1]
        self.last_map = tensor_map(memory, p.dtype, dims, box, pitch=columns * EIGHT)

    # Where tiles and steps are: behind those of whole eights is one more of the last eight rows.

    def _tiles_along(self, n: Any) -> Any:
        if not self.turns_n:
            return super()._tiles_along(n)
        of_whole_eights = T.truncdiv(n + (self.tiles.bn - EIGHT), self.tiles.bn)
        return of_whole_eights + T.truncdiv(T.truncmod(n, EIGHT) + (EIGHT - 1), EIGHT)

    def _sizes(self) -> None:
        super()._sizes()
        p, t = self.product, self.tiles
        self.k = T.Bind(Scalar(p.k)())
        if self.turns_n:
            whole = T.Bind(T.truncdiv(self.n, EIGHT) * EIGHT)
            self.is_last = T.Bind(self.column >= T.truncdiv(whole + (t.bn - 1), t.bn) * t.bn)
            self.column = T.Bind(tirx.Select(self.is_last, self.n - EIGHT, self.column))
            self.from_column = T.Bind(tirx.Select(self.is_last, whole, 0))
            self.end_column = T.Bind(tirx.Select(self.is_last, self.n, whole))
        self.whole_k = T.Bind(T.truncdiv(self.k, EIGHT) * EIGHT) if self.turns_k else self.k

    def _step_count(self) -> Any:
        if not self.turns_k:
            return super()._step_count()
        self.whole_steps = T.Bind(T.truncdiv(self.whole_k + (self.tiles.bk - 1), self.tiles.bk))
        return self.whole_steps + T.truncdiv(self.k - self.whole_k + (EIGHT - 1), EIGHT)

    def _column_of(self, line: Any) -> Any:
        if not self.turns_n:
            return line
        of_one = self.tiles.lines // EIGHT
        return T.truncmod(line, of_one) * EIGHT + T.truncdiv(line, of_one)

    # What is loaded.

    def _each_box(self, step: Any, use: Any) -> None:
        if not (self.turns_k or self.turns_n):
            super()._each_box(step, use)
            return
        last = self.is_last if self.turns_n else self.first + step >= self.whole_steps
        with T.If(last):
            with T.Then():
                self._boxes_of(self.last_map, True, step, use)
            with T.Else():
                self._boxes_of(self.b_map, False, step, use)

    def _boxes_of(self, view: Any, is_last: bool, step: Any, use: Any) -> None:
        t, k = self.tiles, (self.first + step) * self.tiles.bk
        length = self.k if self.turns_n else self.n  # of a row
        rows = self.n if self.turns_n else self.k
        inside = T.truncmod((rows - EIGHT) * length, EIGHT) if is_last else 0
        lines = (t.lines if self.turns_n else t.bk) // EIGHT
        first_row = 0 if is_last else T.truncdiv(self.column if self.turns_n else k, EIGHT)
        panels, along = (t.bk, k) if self.turns_n else (t.lines, self.column)
        for panel in range(panels // PANEL):
            for number in range(EIGHT):
                column = inside + number * length + along + panel * PANEL
                use(panel, number * lines, view, column, first_row)

    def _load_rows(self) -> None:
        t, at = self.tiles, Position(self.tiles.stages)
        with when(self.warp > CONSUMERS):
            if t.chained:
                ptx("griddepcontrol.wait")
            with T.serial(self.count) as step:
                self.ring.empty.wait(at.stage, at.phase ^ 1)
                self._place_rows(self.first + step, at.stage)
                ptx("fence.proxy.async.shared::cta")
                do(T.cuda.warp_sync())
                with when(self.lane == 0):
                    self.ring.full.arrive(at.stage)
                at.advance()

    def _place_rows(self, step: Any, stage: Any) -> None:
        t, begin, low, end = self.tiles, step * self.tiles.bk, 0, self.whole_k
        if self.turns_k:
            last = step >= self.whole_steps
            begin = tirx.Select(last, self.k - EIGHT, begin)
            low, end = (tirx.Select(last, *pair) for pair in ((self.whole_k, 0), (self.k, self.whole_k)))
        turned = int(self.turns_k)
        thread = (self.warp - (CONSUMERS + 1)) * 32 + self.lane
        source = _PLACE_ROWS.format(rows=t.rows, depth=t.bk, turned=turned)
        do(
            c_call(
                "void", f"place_rows_{t.rows}_{t.bk}_{turned}", self.a_stages.ptr_to([stage, 0, 0, 0]),
                self.a.data, self.row, self.product.m, self.k, begin, low, end, thread, source=source,
            )
        )  # fmt: skip

    def _mend(self, step: Any, stage: Any) -> None:
        """Clear what the stage has of the next rows of b."""
        if not self.turns_n:
            return
        t, end = self.tiles, (self.first + step + 1) * self.tiles.bk
        with when(end > self.k):
            source = _CLEAR_ENDS.format(rows=t.lines, depth=t.bk)
            stage_at = self.b_stages.ptr_to([stage, 0, 0, 0])
            valid, thread = self.k - (end - t.bk), self.warp * 32 + self.lane
            do(c_call("void", f"clear_ends_{t.lines}_{t.bk}", stage_at, valid, thread, source=source))
            ptx("fence.proxy.async.shared::cta")
            do(T.cuda.warpgroup_sync(1))
