"""One GPU: the batcher and its lanes against bare loops, PyTorch, failures and cold starts."""
