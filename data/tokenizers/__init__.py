"""One tokenizer = one file; the registry finds it."""
