"""The front end's side of the worker: its process, its messages and the open requests."""
