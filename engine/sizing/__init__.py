"""Compute a model's size, what fits a device and the least time of a step, without torch."""
