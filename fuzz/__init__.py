"""Coverage-guided fuzzing of everything that reads bytes that others wrote. Not part of the package; see `make fuzz`."""
