"""The Open Inference Protocol, so that clients of Triton and KServe work unchanged."""
