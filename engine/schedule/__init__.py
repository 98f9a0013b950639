"""Who runs and what is kept: decisions in plain Python, without torch."""
