"""What ptxas made of each template's default kernel: the instructions that were meant, and no spills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.disassembled import needs_disassembler, opcodes
from tvmops.schedules import templates_for
from tvmops.targets import target
from tvmops.workloads import Workload

AMPERE_ON = ("nvidia-a100", "rtx-3090", "rtx-4090", "nvidia-h100")  # sm_80, sm_86, sm_89, sm_90a
HOPPER = ("nvidia-h100",)
ANY_GPU = ("cuda-sm75", "nvidia-a100", "nvidia-h100")
# LDGSTS is cp.async, LDSM ldmatrix, HMMA mma.sync, IMMA that of integers, IDP dp4a; HGMMA, QGMMA and IGMMA
# are wgmma of 16 bits, of 8 and of integers, UTMALDG
# and UTMASTG the copy engine, STSM stmatrix, USETMAXREG setmaxnreg; MUFU computes exponentials.
KERNELS = [
    ("cuda.gemm_mma", "matmul m=512 n=512 k=512 dtype=float16", AMPERE_ON, {"LDGSTS", "LDSM", "HMMA"}),
    (
        "cuda.weight_only",
        "matmul_weight_only m=16 n=4096 k=4096 dtype=float16",
        AMPERE_ON,
        {"LDGSTS", "HMMA"},
    ),
    (
        "cuda.attention_decode",
        "attention batch=1 heads=32 kv_heads=8 q_len=1 kv_len=4096 head_dim=128 dtype=bfloat16",
        AMPERE_ON,
        {"LDGSTS", "LDSM", "HMMA", "MOVM", "MUFU"},
    ),
    (
        "cuda.attention_decode",
        "attention batch=1 heads=32 kv_heads=8 q_len=1 kv_len=4096 head_dim=128 lengths=true pages=256 "
        "page_size=16 dtype=bfloat16",
        AMPERE_ON,
        {"LDGSTS", "LDSM", "HMMA", "MOVM", "MUFU"},
    ),
    (
        "cuda.attention_wgmma",
        "attention batch=2 heads=8 kv_heads=8 q_len=1024 kv_len=1024 head_dim=128 mask=bool mask_dims=bk "
        "dtype=bfloat16",
        HOPPER,
        {"HGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG", "MUFU"},
    ),
    ("cuda.gemm_simt", "matmul m=512 n=512 k=512 dtype=float32", ANY_GPU, {"FFMA"}),
    ("cuda.rows", "softmax rows=2048 cols=4096 dtype=float16", ANY_GPU, {"LDG", "MUFU", "STG"}),
    ("cuda.rows_long", "softmax rows=8 cols=50257 dtype=float16", HOPPER, {"LDG", "MUFU", "STG", "STAS"}),
    (
        "cuda.gemm_wgmma",
        "matmul m=4096 n=4096 k=4096 dtype=bfloat16",
        HOPPER,
        {"HGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG"},
    ),
    (
        "cuda.gemm_fp8",
        "matmul_fp8 m=4096 n=4096 k=4096 dtype=float8_e4m3fn",
        HOPPER,
        {"QGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG"},
    ),
    (
        "cuda.gemm_tf32",
        "matmul m=4096 n=4096 k=4096 trans_b=true precision=tf32",
        HOPPER,
        {"HGMMA", "UTMALDG", "USETMAXREG"},
    ),
    (
        "cuda.gemm_tf32_across",
        "matmul m=4096 n=4096 k=4096 precision=tf32",
        HOPPER,
        {"HGMMA", "UTMALDG", "LDS", "USETMAXREG"},
    ),
    (
        "cuda.gemm_float32",
        "matmul m=4096 n=4096 k=4096 dtype=float32",
        AMPERE_ON,
        {"LDGSTS", "LDS", "FFMA"},
    ),
    (
        "cuda.gemm_tf32_mma",
        "matmul m=512 n=512 k=512 precision=tf32",
        AMPERE_ON,
        {"LDGSTS", "LDSM", "LDS", "HMMA"},
    ),
    (
        "cuda.gemm_int8",
        "matmul_int8 m=512 n=512 k=512 dtype=int8",
        AMPERE_ON,
        {"LDGSTS", "LDSM", "IMMA", "IDP"},
    ),
    (
        "cuda.gemm_int8_wgmma",
        "matmul_int8 m=4096 n=4096 k=4096 dtype=uint8 trans_b=true out_dtype=int8 scales=channel bias=true",
        HOPPER,
        {"IGMMA", "UTMALDG", "IDP", "USETMAXREG"},
    ),
    (
        "cuda.gemm_int8_wgmma",
        "matmul_int8 m=16 n=4096 k=4096 dtype=int8 trans_b=true b_zero_points=channel",
        HOPPER,
        {"IGMMA", "UTMALDG", "IDP", "USETMAXREG"},
    ),
    (
        "cuda.attention_wgmma",
        "attention batch=2 heads=8 kv_heads=8 q_len=1024 kv_len=1024 head_dim=128 causal=true dtype=bfloat16",
        HOPPER,
        {"HGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG", "MUFU"},
    ),
    (
        "cuda.attention_varlen",
        "attention batch=4 heads=8 kv_heads=2 q_len=1024 kv_len=1024 head_dim=128 causal=true layout=thd "
        "total_q=2048 total_k=2048 dtype=bfloat16",
        HOPPER,
        {"HGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG", "MUFU"},
    ),
    (
        "cuda.attention_pool",
        "attention batch=4 heads=8 kv_heads=2 q_len=512 kv_len=1024 head_dim=128 causal=true lengths=true "
        "pages=256 page_size=16 dtype=bfloat16",
        HOPPER,
        {"HGMMA", "UTMALDG", "UTMASTG", "STSM", "USETMAXREG", "MUFU"},
    ),
]
CASES = [
    pytest.param(name, text, machine, meant, id=f"{name} {machine} {number}")
    for number, (name, text, machines, meant) in enumerate(KERNELS)
    for machine in machines
]
OTHER_PRODUCTS = {"HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA"}
LOCAL_MEMORY = {"STL", "LDL"}


@pytest.mark.parametrize("name, text, machine, meant", CASES)
class TestMachineCode:
    pytestmark = needs_disassembler

    def test_it_is_what_was_meant(
        self, name: str, text: str, machine: str, meant: set[str], tmp_path: Path
    ) -> None:
        work, gpu = Workload.parse(text), target(machine)
        (template,) = (each for each in templates_for(work, gpu) if each.name == name)
        found = opcodes(compiled(template, work, gpu, template.default(work, gpu)), tmp_path)
        assert meant <= set(found)
        assert not set(found) & (LOCAL_MEMORY | OTHER_PRODUCTS - meant)
