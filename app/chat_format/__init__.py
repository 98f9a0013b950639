"""The format in which a model writes its answers, and the neutral events that it is turned into."""
