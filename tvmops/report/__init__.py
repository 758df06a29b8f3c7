"""Compare what was made: with peers, with the machine's limits."""
