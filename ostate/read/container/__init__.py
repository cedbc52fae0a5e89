"""Files that hold tensors: zip, torch.save, safetensors, the index of a distributed checkpoint."""
