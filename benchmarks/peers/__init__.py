"""The mesh against its peers, all run for real: `python -m benchmarks.peers`."""
