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


def in_rows(torch: Any, workload: Workload, packed: Any) -> tuple[Any, Any, Any]:
    """Return weights as a user of PyTorch keeps them: numbers by rows, and the scale and zero of each group.

    Numbers are uint8 of shape (n, k), or (n, k / 2), two of four bits in each, the first in the low ones.
    Scales and zeros are of shape (n, groups) and of the workload's dtype.
    """
    n, _ = workload.dims("n", "k")
    layout, dtype = groups_of(workload), getattr(torch, str(workload["dtype"]))
    numbers, scales, zeros = _parts(torch, workload, packed)
    numbers = numbers.reshape(len(packed) * COLUMNS, -1)[:n]
    if layout.bits == 4:
        numbers = numbers[:, ::2] | numbers[:, 1::2] << 4
    groups = [each.reshape(len(packed) * COLUMNS, -1)[:n].to(dtype).contiguous() for each in (scales, zeros)]
    return numbers.contiguous(), *groups


def unpacked(torch: Any, workload: Workload, packed: Any) -> Any:
    """Return the weights (n, k) that `packed` stands for, as float32."""
    n, k = workload.dims("n", "k")
    numbers, scales, zeros = _parts(torch, workload, packed)
    values = (numbers.float() - zeros[..., None]) * scales[..., None]
    return values.reshape(len(packed) * COLUMNS, -1)[:n, :k]


def _parts(torch: Any, workload: Workload, packed: Any) -> tuple[Any, Any, Any]:
    """Return numbers (panels, columns, groups, group), their scales and zeros (panels, columns, groups)."""
    layout = groups_of(workload)
    blocks = packed.view(packed.shape[0], -1, layout.rows, packed.shape[2])
    head = 1 + layout.has_zero_points
    floats = blocks[:, :, :head].contiguous().view(torch.float32)
    words = blocks[:, :, head:].reshape(*blocks.shape[:2], -1, COLUMNS, 4)
    if layout.bits == 4:
        words = torch.cat([words & 15, words >> 4], dim=-1)
    numbers = words.permute(0, 3, 1, 2, 4).reshape(len(packed), COLUMNS, -1, layout.group)
    scales = floats[:, :, 0].mT
    zeros = floats[:, :, 1].mT if layout.has_zero_points else torch.full_like(scales, layout.zero)
    return numbers, scales, zeros
