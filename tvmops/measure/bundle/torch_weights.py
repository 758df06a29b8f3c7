"""Packed weights of matmul_weight_only drawn and unpacked on the device, where NumPy would take minutes."""

from __future__ import annotations

from typing import Any

from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.signatures.words import COLUMNS
from tvmops.workloads import Workload


def draw_packed(torch: Any, workload: Workload, generator: Any) -> dict[str, Any]:
    """Return weights as the op draws them; nothing where the packing has gaps."""
    n, k = workload.dims("n", "k")
    layout = groups_of(workload)
    if n % COLUMNS or k % layout.group:
        return {}
    device = generator.device
    packed = torch.randint(0, 256, layout.shape(n, k), dtype=torch.uint8, device=device, generator=generator)
    blocks = packed.view(n // COLUMNS, k // layout.group, layout.rows, -1)
    numbers = (n // COLUMNS, k // layout.group, COLUMNS)
    scales = (torch.rand(numbers, device=device, generator=generator) + 0.5) / layout.zero
    blocks[:, :, 0] = scales.view(torch.uint8)
    if layout.has_zero_points:
        low, high = layout.zero - 1, layout.zero + 2
        zeros = torch.randint(low, high, numbers, device=device, generator=generator)
        blocks[:, :, 1] = zeros.float().view(torch.uint8)
    return {"w": packed}


def unpacked(torch: Any, workload: Workload, packed: Any) -> Any:
    """Return the weights (n, k) that `packed` stands for, as float32."""
    n, k = workload.dims("n", "k")
    layout = groups_of(workload)
    blocks = packed.view(packed.shape[0], -1, layout.rows, packed.shape[2])
    head = 1 + layout.has_zero_points
    floats = blocks[:, :, :head].contiguous().view(torch.float32)
    words = blocks[:, :, head:].reshape(*blocks.shape[:2], -1, COLUMNS, 4)
    if layout.bits == 4:
        words = torch.cat([words & 15, words >> 4], dim=-1)
    values = words.permute(0, 3, 1, 2, 4).reshape(len(packed), COLUMNS, -1, layout.group).float()
    values -= floats[:, :, 1].mT[..., None] if layout.has_zero_points else layout.zero
    values *= floats[:, :, 0].mT[..., None]
    return values.reshape(len(packed) * COLUMNS, -1)[:n, :k]
