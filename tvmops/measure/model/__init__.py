"""Modelled, not measured: exact counts of what a kernel executes, times a core's modelled cycles."""
