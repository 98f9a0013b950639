"""The worker process, which owns the GPU, the model and the scheduler.

It handles neither HTTP nor text, which belong to the front end.
"""
