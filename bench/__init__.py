"""Measurements, one per file. `easel bench NAME` runs one; docs/performance.md has the results."""
