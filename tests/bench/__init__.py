"""Coverage and benchmarks: they measure the package beside its peers, and nothing imports them."""
