"""The vocabulary tail: from hidden states to statistics, drawn tokens and log-probabilities."""
