"""A live optimizer, filled by name."""
