"""The demo model: a small trained DiffusionGemma and the code that trains it."""
