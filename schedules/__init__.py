"""Schedule templates. A template is named by where it lies: "module:class"."""

from __future__ import annotations

from tvmops.errors import NoTemplateError, WorkloadError
from tvmops.schedules.cpu.attention import CpuAttention
from tvmops.schedules.cpu.attention_decode import CpuDecode
from tvmops.schedules.cpu.attention_dot import CpuAttentionDot
from tvmops.schedules.cpu.conv2d_channels import Conv2DChannels
from tvmops.schedules.cpu.conv2d_depthwise import Conv2DDepthwise
from tvmops.schedules.cpu.conv2d_pixels import Conv2DPixels
from tvmops.schedules.cpu.elementwise import CpuElementwise
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.schedules.cpu.gemm_bfloat16 import CpuGemmBfloat16
from tvmops.schedules.cpu.gemm_inner import CpuGemmInner
from tvmops.schedules.cpu.gemm_int8 import CpuGemmInt8
from tvmops.schedules.cpu.norm import CpuNorm
from tvmops.schedules.cpu.pool import CpuPool
from tvmops.schedules.cpu.softmax import CpuSoftmax
from tvmops.schedules.cpu.softmax_columns import CpuSoftmaxColumns
from tvmops.schedules.cpu.weight_only import WeightOnly
from tvmops.schedules.cpu.winograd import Winograd2, Winograd4, Winograd6
from tvmops.schedules.cuda.attention_decode import DecodeAttention
from tvmops.schedules.cuda.attention_few import FewAttention
from tvmops.schedules.cuda.attention_pool import PoolAttention
from tvmops.schedules.cuda.attention_spread import SpreadAttention
from tvmops.schedules.cuda.attention_varlen import VarlenAttention
from tvmops.schedules.cuda.attention_wgmma import WgmmaAttention
from tvmops.schedules.cuda.conv_depthwise import DepthwiseConv
from tvmops.schedules.cuda.conv_grouped import GroupedConv
from tvmops.schedules.cuda.conv_grouped_planes import GroupedPlanes
from tvmops.schedules.cuda.conv_halo import HaloConv
from tvmops.schedules.cuda.conv_halo_streamed import StreamedHaloConv
from tvmops.schedules.cuda.conv_mma import MmaConv
from tvmops.schedules.cuda.conv_narrow import NarrowConv
from tvmops.schedules.cuda.conv_planes import PlanesConv
from tvmops.schedules.cuda.conv_wgmma import WgmmaConv
from tvmops.schedules.cuda.float32_stream import Float32Stream
from tvmops.schedules.cuda.gemm_abreast import AbreastGemm
from tvmops.schedules.cuda.gemm_aside import AsideGemm
from tvmops.schedules.cuda.gemm_chained import ChainedGemm, ChainedMma
from tvmops.schedules.cuda.gemm_float32 import Float32Gemm
from tvmops.schedules.cuda.gemm_fp8 import Fp8Gemm
from tvmops.schedules.cuda.gemm_int8 import Int8Gemm
from tvmops.schedules.cuda.gemm_int8_wgmma import Int8WgmmaGemm
from tvmops.schedules.cuda.gemm_loose import LooseGemm
from tvmops.schedules.cuda.gemm_mma import MmaGemm
from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_padded_late import LatePaddedGemm
from tvmops.schedules.cuda.gemm_simt import SimtGemm
from tvmops.schedules.cuda.gemm_small import SmallGemm
from tvmops.schedules.cuda.gemm_split import SplitGemm
from tvmops.schedules.cuda.gemm_stream import StreamGemm
from tvmops.schedules.cuda.gemm_stream_k import StreamKGemm
from tvmops.schedules.cuda.gemm_stream_loose import LooseStreamGemm
from tvmops.schedules.cuda.gemm_summed import SummedGemm
from tvmops.schedules.cuda.gemm_swapped import SwappedGemm
from tvmops.schedules.cuda.gemm_tf32 import Tf32Across, Tf32Few, Tf32Gemm, Tf32Mma
from tvmops.schedules.cuda.gemm_tf32_crossed import Tf32Crossed
from tvmops.schedules.cuda.gemm_tf32_padded import Tf32Padded
from tvmops.schedules.cuda.gemm_turned import TurnedGemm
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.long_rows import LongRows
from tvmops.schedules.cuda.rows import CudaRows
from tvmops.schedules.cuda.softmax_columns import SoftmaxColumns
from tvmops.schedules.cuda.weight_only import WeightOnlyMma
from tvmops.schedules.cuda.weight_only_expanded import WeightOnlyExpanded
from tvmops.schedules.cuda.weight_only_rounded import WeightOnlyRounded
from tvmops.schedules.cuda.weight_only_stream import WeightOnlyStream
from tvmops.schedules.cuda.weight_only_wgmma import WeightOnlyWgmma
from tvmops.schedules.sketch import Sketch
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.matmul import FULL
from tvmops.targets import Target
from tvmops.workloads import Workload

TEMPLATES: tuple[Template, ...] = (
    CpuGemmInner(),
    CpuGemm(),
    CpuGemmBfloat16(),
    CpuGemmInt8(),
    WeightOnly(),
    Conv2DDepthwise(),
    Conv2DPixels(),
    Conv2DChannels(),
    CpuDecode(),
    CpuAttentionDot(),
    CpuAttention(),
    Winograd4(),
    Winograd2(),
    Winograd6(),
    CpuPool(),
    CpuSoftmax(),
    CpuSoftmaxColumns(),
    CpuNorm(),
    CpuElementwise(),
    SwappedGemm(),
    LooseGemm(),
    StreamGemm(),
    LooseStreamGemm(),
    SmallGemm(),
    WgmmaGemm(),
    ChainedGemm(),
    TurnedGemm(),
    AbreastGemm(),
    AsideGemm(),
    SplitGemm(),
    SummedGemm(),
    StreamKGemm(),
    LatePaddedGemm(),
    PaddedGemm(),
    Fp8Gemm(),
    MmaGemm(),
    ChainedMma(),
    Int8WgmmaGemm(),
    Int8Gemm(),
    Tf32Few(),
    Tf32Gemm(),
    Tf32Across(),
    Tf32Crossed(),
    Tf32Padded(),
    Tf32Mma(),
    Float32Stream(),
    Float32Gemm(),
    SimtGemm(),
    SpreadAttention(),
    DecodeAttention(),
    FewAttention(),
    WgmmaAttention(),
    PoolAttention(),
    VarlenAttention(),
    CudaRows(),
    LongRows(),
    SoftmaxColumns(),
    WeightOnlyRounded(),
    WeightOnlyWgmma(),
    WeightOnlyStream(),
    WeightOnlyMma(),
    WeightOnlyExpanded(),
    GroupedConv(),
    DepthwiseConv(),
    StreamedHaloConv(),
    HaloConv(),
    WgmmaConv(),
    NarrowConv(),
    GroupedPlanes(),
    PlanesConv(),
    MmaConv(),
    Sketch(),
)


def templates_for(workload: Workload, target: Target) -> list[Template]:
    """Return the templates that can schedule `workload` on `target`, the usual one first.

    Raises
    ------
    NoTemplateError
        There is none.
    WorkloadError
        There is none that keeps fewer bits of factors than all, as the workload lets it.
    """
    precision = workload["precision"] if workload.op == "matmul" else FULL
    fitting = [
        template
        for template in TEMPLATES
        if precision == template.precision and template.covers(workload, target)
    ]
    if not fitting and precision != FULL:
        expected = f"{FULL} on {target.name}, whose kernels know no other"
        raise WorkloadError(op=workload.op, field="precision", value=precision, expected=expected)
    if not fitting:
        raise NoTemplateError(workload=workload, target=target.name)
    return sorted(fitting, key=lambda template: template.comes_last(workload, target))


__all__ = ["TEMPLATES", "GenericKernel", "Template", "templates_for"]
