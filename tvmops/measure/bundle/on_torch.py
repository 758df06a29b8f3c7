"""CUDA through PyTorch: its memory, its events and graphs, and itself as a peer.

Calls are captured in a CUDA graph and replayed, so that what is timed is the device and not
how fast Python starts kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvmops.measure.bundle.clocks import gpu_clock
from tvmops.measure.bundle.device import Call, calls_for, decoded
from tvmops.measure.bundle.torch_compiled import compiled_peers
from tvmops.measure.bundle.torch_exact import DRAWN, EXACT, SCALES
from tvmops.measure.bundle.torch_peers import PEERS
from tvmops.ops import Op, op_of
from tvmops.signatures import TensorSpec
from tvmops.signatures.dtypes import BFLOAT16, FLOAT8
from tvmops.workloads import Workload

_CAPTURED_SECONDS = 1e-3  # of work in a graph


class TorchCuda:
    """Tensors on PyTorch's current CUDA device.

    With `compile_seconds`, what `torch.compile` makes of an op in so many is one of its peers.
    """

    def __init__(self, compile_seconds: float = 0.0) -> None:
        import torch

        self._torch, self._compile_seconds = torch, compile_seconds
        properties = torch.cuda.get_device_properties(0)
        self.machine = (
            f"{properties.name}, compute {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors"
        )
        self._gpu_clock = gpu_clock(str(properties.uuid))

    def draw(self, workload: Workload, seed: int) -> list[Any]:
        op, torch = op_of(workload), self._torch
        generator = torch.Generator("cuda").manual_seed(seed)
        drawn = DRAWN[workload.op](torch, workload, generator) if workload.op in DRAWN else {}
        scales = SCALES[workload.op](workload) if workload.op in SCALES else None
        wishes = type(op).random_inputs is not Op.random_inputs
        if wishes and not drawn and scales is None:
            arrays = op.random_inputs(workload, seed)
            return [self._upload(array, spec.dtype) for array, spec in zip(arrays, op.inputs(workload))]
        tensors = []
        for spec in op.inputs(workload):
            if spec.name in drawn:
                tensors.append(drawn[spec.name])
                continue
            values = torch.rand(spec.shape, device="cuda", generator=generator) * 2 - 1
            tensor = (values * (scales or {}).get(spec.name, 1.0)).to(self._dtype(spec.dtype))
            tensors.append(tensor.view(torch.uint8) if spec.dtype in FLOAT8 else tensor)
        return tensors

    def poison(self, workload: Workload, expected: Sequence[Any]) -> list[Any]:
        specs = op_of(workload).outputs(workload)
        return [self._wrong(right, spec) for right, spec in zip(expected, specs)]

    def _wrong(self, right: Any, spec: TensorSpec) -> Any:
        """Return a tensor that is right nowhere: NaN, or integers with their top bit turned."""
        torch, dtype = self._torch, self._dtype(spec.dtype)
        if dtype.is_floating_point:
            return torch.full(spec.shape, math.nan, device="cuda", dtype=dtype)
        top_bit = torch.iinfo(dtype).min or 128
        return right.reshape(spec.shape).to(dtype) ^ top_bit

    def reference(self, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any]:
        torch, op = self._torch, op_of(workload)
        exact = EXACT[workload.op](torch, workload, inputs) if workload.op in EXACT else None
        if exact is not None:
            return exact
        arrays = [self._download(tensor) for tensor in inputs]
        return [
            torch.from_numpy(result).cuda()
            for result in op.reference(workload, *decoded(op, workload, arrays))
        ]

    def error(self, output: Any, expected: Any, dtype: str) -> float:
        same = (output == expected) | (output.isnan() & expected.isnan())
        difference = (output.double() - expected).abs().masked_fill_(same, 0.0)
        return float(difference.nan_to_num_(nan=math.inf).max())

    def clock(self, call: Call, sets: Sequence[Sequence[Any]]) -> Callable[[float], float]:
        torch = self._torch
        for arguments in sets:
            call(*arguments)
        torch.cuda.synchronize()
        once = self._timed(lambda: [call(*arguments) for arguments in sets], 1) / len(sets)
        count = calls_for(once, _CAPTURED_SECONDS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(max(count, 2)):
                call(*sets[number % len(sets)])
        count = max(count, 2)
        graph.replay()

        def run(seconds: float) -> float:
            return self._timed(graph.replay, max(1, round(seconds / max(once * count, 1e-6)))) / count

        return run

    def _timed(self, work: Callable[[], object], times: int) -> float:
        """Return the mean seconds of `work`."""
        torch = self._torch
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / times

    def megahertz(self) -> float | None:
        return self._gpu_clock()

    def peers(self, workload: Workload) -> dict[str, Call]:
        make = PEERS.get(workload.op)
        peers = make(self._torch, workload) if make else {}
        if self._compile_seconds:
            peers |= compiled_peers(self._torch, workload, self._compile_seconds)
        return peers

    def compile(self, workload: Workload) -> None:
        """Have `torch.compile` make what it offers for `workload`, which its caches then hold."""
        for call in compiled_peers(self._torch, workload, self._compile_seconds).values():
            call(*self.draw(workload, 0))
        self._torch.cuda.empty_cache()  # other processes need memory, too

    def _dtype(self, name: str) -> Any:
        return getattr(self._torch, name)

    def _upload(self, array: Any, dtype: str) -> Any:
        tensor = self._torch.from_numpy(array).cuda()
        return tensor.view(self._torch.bfloat16) if dtype == BFLOAT16 else tensor

    def _download(self, tensor: Any) -> Any:
        if tensor.dtype == self._torch.bfloat16:
            tensor = tensor.view(self._torch.uint16)
        return tensor.cpu().numpy()


__all__ = ["TorchCuda"]
