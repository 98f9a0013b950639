"""What published checkpoints look like on disk: one file a format, and our own cache of what was
quantised here. Each gives a module's weight as it is stored, never in full; none knows the network.
"""
