"""Adam's preconditioner with guards, over plain and sharded parameters."""
