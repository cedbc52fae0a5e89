"""How programs split parameters into `param_groups`, and which claims that refutes."""
