"""Checks of a library on a machine with a GPU; they need no compiler. `scripts/check-device` runs them."""
