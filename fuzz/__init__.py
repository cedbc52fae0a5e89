"""Coverage-guided fuzzing of everything that reads a stranger's bytes. Not part of the package; see `make fuzz`."""
