"""The network, and the code that fills it from a checkpoint. It knows no requests or schedule."""
