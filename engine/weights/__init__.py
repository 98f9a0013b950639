"""Quantised weights and readers for published checkpoint formats, one file for each format.

Each reader returns a module's weight as it is stored and never dequantises it. Nothing here knows
the network.
"""
