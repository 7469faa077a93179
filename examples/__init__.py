"""Scripts that show what `etpc` does."""
