"""Which channels of a network belong together: found by one run, operation by operation."""
