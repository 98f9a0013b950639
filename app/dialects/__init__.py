"""The API dialects, each in its own folder, and the modules that several of them share.

No dialect imports another.
"""
