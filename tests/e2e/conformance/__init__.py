"""The same requests to Triton's server and to a mesh, and a table of what differs."""
