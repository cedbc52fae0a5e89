"""Real checkpoints, and what makes one."""
