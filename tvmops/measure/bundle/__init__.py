"""Measurement bundles: candidates built here are verified and timed on a machine without a compiler."""
