"""What every process of the mesh stands on: the wire, telemetry, settings, the command line."""

__version__ = "0.1.0"

WIRE_VERSION = 1
"""Version of the messages between services; `Describe` tells it, and the gateway compares it."""
