"""Which version of a model answers: weights, sticky keys, shadows, and rules that end a canary."""
