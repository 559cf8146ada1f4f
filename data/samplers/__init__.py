"""One sampler = one file; the registry finds it."""
