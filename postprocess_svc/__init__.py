"""CPU work after the model: tensors in, answers out."""
