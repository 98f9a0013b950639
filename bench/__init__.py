"""Measurements, one question a file: `easel bench NAME`; see docs/performance.md."""
