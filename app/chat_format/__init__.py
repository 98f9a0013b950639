"""The format in which a model writes its answers, and the neutral events made from it."""
