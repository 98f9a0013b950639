"""Decisions, whichever dialect asks: questions, canvases, reads and answers."""
