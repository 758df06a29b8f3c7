"""The attribute of functions whose instructions ptxas should leave in the order of the source.

It moves multiplications about, which costs those that would have found a register kept from the one
before a read of a register's bank, and each of these a cycle.
"""

IN_ORDER = ("tvmops.in_order", 1)
