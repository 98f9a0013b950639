"""The errors that refuse a checkpoint's weights."""


class UnsupportedFormatError(ValueError):
    """The checkpoint is stored in a format that Easel cannot read."""


class UnreadableWeightsError(ValueError):
    """A file of weights is damaged, or the weights contradict each other. The text says which."""
