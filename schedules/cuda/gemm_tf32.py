"""Products of float32 with 10 bits of mantissa (tf32), for those who ask for them: wgmma, or mma.sync."""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_mma import (
    MmaGemm,
    is_chained,
    product_of,
    tiles_of,
)
from tvmops.schedules.cuda.gemm_tiles import FEWER_SUMS, narrowed, sums_of
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, launched_early
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.cuda.kernels.gemm_fragments import STEPS
from tvmops.schedules.cuda.kernels.gemm_tf32 import Tf32Kernel
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.matmul import FULL, TF32
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80
ALIGNED = 4  # elements of 16 bytes
_MOST_WORDS = 144  # of a thread, for sums and fragments
_FEW, _MOST_FEW = (16, 32), 128  # rows of c, which are columns of what is multiplied


class Tf32Gemm(WgmmaGemm):
    """To the machine a product of 16 bits and twice the k; of factors that both lie along k."""

    name = "cuda.gemm_tf32"
    version = 2
    precision = TF32

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            is_tf32_on_hopper(workload, target)
            and workload["trans_b"] is True
            and workload["trans_a"] is False
            and all(workload[dim] == ANY or workload.dims(dim)[0] % ALIGNED == 0 for dim in "nk")
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(_in_halves(workload), target)
        knobs = (*whole.knobs, Knob("chained", (0, 1)))
        if not workload["residual"]:
            return Space(self.name, knobs, whole.is_legal)
        return Space(self.name, knobs, lambda c: sums_of(c) <= FEWER_SUMS and whole.is_legal(c))

    def choices(self, workload: Workload) -> list[Config]:
        return [launched_early(config) for config in super().choices(workload)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_in_halves(workload), target, config)

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_in_halves(workload), target, config)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        multiples = {"n": ALIGNED, "k": ALIGNED}
        kernels = super().generic(_in_halves(workload), target)
        configs = [launched_early(kernel.config) for kernel in kernels]
        configs = [narrowed(config) for config in configs] if workload["residual"] else configs
        return [GenericKernel(kernel.ranges, c, multiples) for kernel, c in zip(kernels, configs)]


class Tf32Across(Tf32Gemm):
    """Of one factor whose rows lie across k: it is the first of the product, or of c^T = b^T a^T."""

    name = "cuda.gemm_tf32_across"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            is_tf32_on_hopper(workload, target)
            and workload["trans_a"] is workload["trans_b"]
            and all(workload[dim] == ANY or workload.dims(dim)[0] % ALIGNED == 0 for dim in _rows(workload))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(_turned(workload), target)
        few = () if workload["trans_a"] else _few(workload)
        knobs = tuple(Knob("bn", (*few, *knob.values)) if knob.name == "bn" else knob for knob in whole.knobs)
        return Space(self.name, knobs, lambda c: has_room_for_fragments(c) and whole.is_legal(c))

    def choices(self, workload: Workload) -> list[Config]:
        configs = super().choices(workload)
        few = not workload["trans_a"] and workload.dims("m")[0] <= _FEW[-1]
        return _of_few_rows(configs, workload) if few else configs

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_turned(workload), target, config)

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_turned(workload), target, config)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        multiples = dict.fromkeys(_rows(workload), ALIGNED)
        return [replace(kernel, multiples=multiples) for kernel in super().generic(workload, target)]

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = super().form_of(workload, config)
        return form if form.trans_a else replace(form, trans_a=True, trans_b=True, turned=True)


class Tf32Few(Tf32Gemm):
    """Of few rows of a, as c^T = b a^T: b fills the rows of a wgmma, and little is multiplied besides."""

    name = "cuda.gemm_tf32_few"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        rows = workload["m"] if workload.op == "matmul" else ANY
        return super().covers(workload, target) and rows != ANY and workload.dims("m")[0] <= _MOST_FEW

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(_swapped(workload), target)
        knobs = tuple(
            Knob("bn", (*_few(workload), *knob.values)) if knob.name == "bn" else knob for knob in whole.knobs
        )
        return Space(self.name, knobs, whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return _of_few_rows(super().choices(workload), workload)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_swapped(workload), target, config)

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_swapped(workload), target, config)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), turned=True)


class Tf32Mma(MmaGemm):
    """Any m, n, k, batch, transposes and epilogue."""

    name = "cuda.gemm_tf32_mma"
    version = 1
    vectors, each = (16, 8, 4), 4
    precision = TF32

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "matmul"
            and target.gpu is not None
            and target.gpu.compute >= _AMPERE
            and workload["precision"] == TF32
        )

    def in_halves(self, workload: Workload) -> Workload:
        return _in_halves(workload)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return Tf32Kernel(product, tiles_of(config), is_chained(target)).module()


def is_tf32_on_hopper(workload: Workload, target: Target) -> bool:
    if workload.op != "matmul" or target.gpu is None or target.gpu.code != "sm_90a":
        return False
    return workload["precision"] == TF32


def has_room_for_fragments(config: Config) -> bool:
    """Say whether registers are left for what is read of the factor whose rows lie across k."""
    bm, consumers = int(config["bm"]), int(config["consumers"])
    return sums_of(config) + STEPS * 8 * (bm // (64 * consumers)) <= _MOST_WORDS


def _turned(workload: Workload) -> Workload:
    """Return the product that is made in place of `workload`: c^T = b^T a^T, unless it is that of b^T."""
    return workload if workload["trans_a"] else _swapped(workload).replace(trans_a=True)


def _swapped(workload: Workload) -> Workload:
    """Return the product c^T = b a^T that is made in place of `workload`."""
    return workload.replace(m=workload["n"], n=workload["m"], trans_b=True)


def _few(workload: Workload) -> tuple[int, ...]:
    """Return the sizes of a tile that few rows fit in."""
    (rows,) = workload.dims("m")
    return tuple(size for size in _FEW if size < 2 * max(rows, _FEW[0]))


def _of_few_rows(configs: list[Config], workload: Workload) -> list[Config]:
    """Return `configs` with tiles that the rows of a just fit in."""
    (rows,) = workload.dims("m")
    size = next(size for size in (*_FEW, 64, _MOST_FEW) if size >= rows)
    return [config.replace(bn=size) for config in configs]


def _rows(workload: Workload) -> str:
    """Return the dimensions along which the rows of an array lie."""
    return "mnk" if workload["trans_a"] else "nk"


def _in_halves(workload: Workload) -> Workload:
    """Return the product of 16 bits that moves the same bytes, but for those of the result."""
    if workload["precision"] == FULL:
        return workload
    k = workload["k"]
    return workload.replace(dtype="bfloat16", precision=FULL, k=2 * k if isinstance(k, int) else k)
