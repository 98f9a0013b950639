"""Several Easels behind one address, on Ray Serve."""
