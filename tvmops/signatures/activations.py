"""The activations that ops can end with, by their names in a workload's text."""

from __future__ import annotations

from tvmops.signatures.fields import Choice, Field

NONE = "none"
ACTIVATIONS = (NONE, "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh")
ACTIVATION = Field("activation", Choice(ACTIVATIONS), NONE)
