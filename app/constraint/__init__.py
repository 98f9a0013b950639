"""Constraints of answers: schemas, regular expressions and tools, compiled to numbers."""
