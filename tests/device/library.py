"""The library that the checks call: for CPUs and a GPU, every op, no tuning.

python -m tests.device.library FOLDER     # needs the compiler and nvcc, but no GPU
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.libraries import default_record, write_log
from tvmops.library.export import export
from tvmops.records import Record
from tvmops.targets import target
from tvmops.workloads import Workload

TARGETS = ("x86-64-v3", "x86-64-v4", "nvidia-h100")
EVERYWHERE = ("matmul m=128 n=96 k=64", "layer_norm rows=64 cols=304 weight=true bias=true")
ON_GPUS = (
    "matmul m=256 n=384 k=512 dtype=bfloat16",
    "matmul m=77 n=203 k=301 dtype=bfloat16",  # rows that begin anywhere: needs a workspace
    "matmul_int8 m=64 n=96 k=128 dtype=int8",
    "matmul_fp8 m=64 n=96 k=128",
    "matmul_weight_only m=4 n=96 k=128 group=32 bits=4 dtype=bfloat16",
    "softmax rows=64 cols=304 dtype=bfloat16",
    "rms_norm rows=64 cols=304 weight=true dtype=bfloat16",
    "layer_norm rows=64 cols=304 residual=true dtype=bfloat16",
    "attention batch=2 heads=4 kv_heads=4 q_len=256 kv_len=256 head_dim=128 dtype=bfloat16",
    "attention batch=2 heads=4 kv_heads=2 q_len=1 kv_len=256 head_dim=64 dtype=float16",
    "attention batch=2 heads=4 kv_heads=2 q_len=5 kv_len=1100 head_dim=64 dtype=float16",
    "attention batch=4 heads=4 kv_heads=2 q_len=200 kv_len=200 head_dim=64 causal=true layout=thd "
    "total_q=337 total_k=337 dtype=float16",
    "conv2d n=2 h=14 w=14 ci=64 co=64 kh=3 kw=3 padding=1 layout=NHWC dtype=float16 "
    "bias=true activation=relu",
    "conv2d n=1 h=14 w=14 ci=32 co=64 kh=3 kw=3 padding=1 dtype=float16",
    "pool2d n=2 h=14 w=14 c=16 kernel=3 stride=2 padding=1",  # by sketch search's plain schedule
)


def make_library(folder: Path) -> Path:
    """Export the library to `folder`."""
    records: list[Record] = []
    for machine in map(target, TARGETS):
        texts = EVERYWHERE if machine.gpu is None else (*EVERYWHERE, *ON_GPUS)
        records += [default_record(Workload.parse(text), machine) for text in texts]
    log = write_log(folder.with_suffix(".jsonl"), *records)
    try:
        work = [Workload.parse(text) for text in (*EVERYWHERE, *ON_GPUS)]
        return export(work, TARGETS, [log], folder)
    finally:
        log.unlink()


if __name__ == "__main__":
    make_library(Path(sys.argv[1]))
