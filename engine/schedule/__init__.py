"""Decide which requests run and which prefixes are kept. Plain Python, without torch."""
