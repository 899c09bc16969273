"""CPU work before the model: bytes in, tensors out."""
