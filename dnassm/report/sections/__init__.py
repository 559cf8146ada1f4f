"""One kind of artifact = one file; the registry finds it."""
