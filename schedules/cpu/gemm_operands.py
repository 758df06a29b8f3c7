"""What a GEMM multiplies: sizes, buffers, and where their elements lie."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, lanes, load, minimum, refuse_overlap
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.signatures.layouts import PLAIN, Panels
from tvmops.targets import Target
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Product:
    """A workload as its loops see it: each size a number, or a symbol where it is `*`."""

    m: Extent
    n: Extent
    k: Extent
    batch: Extent
    dtype: str
    width: int  # lanes of one vector
    registers: int  # of vectors
    multiplies_by_lane: bool  # as the target says
    shared: str
    trans_a: bool
    trans_b: bool
    panel: int  # columns of a panel of a packed b; 0 where b is not packed
    epilogue: Epilogue

    @classmethod
    def of(cls, workload: Workload, target: Target) -> Product:
        dtype = str(workload["dtype"])
        return cls(
            _extent(workload, "m"),
            _extent(workload, "n"),
            _extent(workload, "k"),
            _extent(workload, "batch"),
            dtype,
            target.vector_width(dtype),
            target.vector_registers,
            target.multiplies_by_lane,
            str(workload["shared"]),
            workload["trans_a"] is True,
            workload["trans_b"] is True,
            0 if workload["packed"] == PLAIN else Panels(dtype).columns,
            Epilogue.of(workload),
        )

    @property
    def has_batch(self) -> bool:
        return self.batch != 1 if isinstance(self.batch, int) else True


class Operands:
    """The arguments of a kernel, and how to read and write what belongs to one matrix of a batch."""

    def __init__(self, product: Product) -> None:
        """Declare the arguments; to be called inside a function that is being built."""
        self.product = product
        m, n, k = product.m, product.n, product.k
        shapes: dict[str, tuple[Extent, ...]] = {
            "a": self._of_batch("a", (k, m) if product.trans_a else (m, k)),
            "b": self._of_batch("b", (n, k) if product.trans_b else (k, n)),
        }
        if product.panel:
            panels = ceildiv(n, product.panel) if isinstance(n, int) else tirx.Var("panels", "int32")
            shapes["b"] = (panels, k, product.panel)
        if product.epilogue.bias:
            shapes["bias"] = (n,)
        if product.epilogue.residual:
            shapes["residual"] = self._of_batch("", (m, n))
        shapes["c"] = self._of_batch("", (m, n))
        handles = {name: T.arg(name, T.handle()) for name in shapes}
        # align=4: a caller's array may start at any element
        self.buffers = {
            name: T.match_buffer(handles[name], shape, product.dtype, align=4)
            for name, shape in shapes.items()
        }
        self.c = self.buffers["c"]
        refuse_overlap(self.c, {name: buffer for name, buffer in self.buffers.items() if name != "c"})

    def _of_batch(self, operand: str, matrix: tuple[Extent, ...]) -> tuple[Extent, ...]:
        product = self.product
        return (product.batch, *matrix) if product.has_batch and product.shared != operand else matrix

    def at(self, operand: str, batch: Extent, *index: Extent) -> list[Extent]:
        """Return the indices of an element of the matrix at `batch`."""
        product = self.product
        return [batch, *index] if product.has_batch and product.shared != operand else list(index)

    def load_a(self, batch: Extent, row: Extent, k: Extent, count: int) -> tirx.Expr:
        """Return `count` elements of a row of a from column `k` on; one where a is transposed."""
        index = (k, row) if self.product.trans_a else (row, lanes(k, count))
        return self.buffers["a"][tuple(self.at("a", batch, *index))]

    def load_b(self, batch: Extent, k: Extent, column: Extent, limit: Extent | None) -> tirx.Expr:
        """Return a vector of neighbouring columns of row `k` of a b that is not transposed."""
        width, panel = self.product.width, self.product.panel
        if panel:  # a vector never crosses a panel, but tiles may be wider than what is left
            b = self.buffers["b"]
            return load(b, [minimum(column // panel, b.shape[0] - 1), k], column % panel, width, None)
        return load(self.buffers["b"], self.at("b", batch, k), column, width, limit)

    def load_bias(self, column: Extent, limit: Extent | None) -> tirx.Expr:
        return load(self.buffers["bias"], [], column, self.product.width, limit)

    def load_residual(self, batch: Extent, row: Extent, column: Extent, limit: Extent | None) -> tirx.Expr:
        at = self.at("", batch, row)
        return load(self.buffers["residual"], at, column, self.product.width, limit)

    def prefetch_b(self, batch: Extent, k: Extent, column: Extent) -> None:
        """Ask for the cache line of b that holds row `k` at `column`, which may lie beyond its end."""
        index = (column, k) if self.product.trans_b else (k, column)
        element = self.buffers["b"][tuple(self.at("b", batch, *index))]
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(element), *_READ_TO_L2))


_READ_TO_L2 = tuple(tirx.const(value, "int32") for value in (0, 2, 1))  # read; level; data


def _extent(workload: Workload, name: str) -> Extent:
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")
