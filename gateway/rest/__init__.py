"""The gateway over HTTP: the same calls, with the same layers."""
