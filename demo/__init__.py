"""The demo model: a small trained DiffusionGemma, and everything that made it."""
