"""What a published format may be refused for."""


class UnsupportedFormatError(ValueError):
    """The checkpoint is stored in a way that is not read here."""
