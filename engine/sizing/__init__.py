"""How large a model is, what fits a device, and how fast it can be: arithmetic without torch."""
