"""Quantised weights, and what published checkpoints look like on disk, one file a format.

Each format gives a module's weight as it is stored, never in full. Nothing here knows the network.
"""
