"""Records that ship with the package: one folder a target, one JSON-lines file an op."""
