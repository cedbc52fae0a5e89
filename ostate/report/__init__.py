"""The same findings as text, JSON and HTML."""
