"""A client process that loads a server: `python -m benchmarks.load --help`.

Nothing here but the clients of the mesh and of gRPC needs the project's packages, so that the same
generator runs in the environment of a peer.
"""
