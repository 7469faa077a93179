"""Results that others published, reached here. Each module is one of them, `python -m examples.published.NAME`."""
