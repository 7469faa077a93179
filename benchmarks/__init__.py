"""How fast, how large and how wrong: one question per file. Run as `python -m benchmarks`."""
