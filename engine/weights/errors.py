"""The error that refuses a published format."""


class UnsupportedFormatError(ValueError):
    """The checkpoint is stored in a format that Easel cannot read."""
