"""What people write: these run in the peers' environments and need nothing of the mesh."""
