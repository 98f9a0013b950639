"""The network and its weights: shapes, layers, checkpoint. Knows no request and no schedule."""
