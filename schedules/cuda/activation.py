"""Activations of a float in CUDA; NaN and infinity go through them as through PyTorch's."""

from __future__ import annotations

from typing import Any

from tvmops.schedules.cuda.words import c_call

_FORMULAS = {
    "relu": "x < 0.0f ? 0.0f : x",
    "relu6": "x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.70710678f))",
    "gelu_tanh": "0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))",
    "silu": "x / (1.0f + expf(-x))",
    "hardswish": "x * ((x < -3.0f ? 0.0f : x > 3.0f ? 6.0f : x + 3.0f) / 6.0f)",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "tanh": "tanhf(x)",
}
_ACTIVATE = """
__forceinline__ __device__ float activate_{name}(float x) {{
  return {formula};
}}
"""


def activate(name: str, value: Any) -> Any:
    """Return the activation `name` of `value`."""
    if name == "none":
        return value
    source = _ACTIVATE.format(name=name, formula=_FORMULAS[name])
    return c_call("float32", f"activate_{name}", value, source=source)
