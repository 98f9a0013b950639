"""The API dialects, a folder each, and beside them what several of them share.

No dialect imports another.
"""
