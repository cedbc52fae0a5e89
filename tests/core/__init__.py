"""What travels: names, files, tensors."""
