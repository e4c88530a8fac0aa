"""Complete networks, built from `unveil.blocks`."""
