"""The network and what ties a checkpoint to it. Knows no request and no schedule."""
