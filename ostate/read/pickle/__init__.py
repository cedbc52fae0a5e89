"""A pickle machine that builds inert values and runs nothing."""
