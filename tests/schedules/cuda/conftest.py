"""What tests of kernels for GPUs share."""

from __future__ import annotations

import pytest

from tvmops.measure import cuda


@pytest.fixture
def source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make CUDA code without nvcc's and ptxas's work on it, which the emulator has no use for."""

    def uncompiled(source: str, code: str) -> cuda.Cubin:
        return cuda.Cubin(b"not compiled", source, cuda.Report.of(""))

    monkeypatch.setattr(cuda, "compile_cuda", uncompiled)
