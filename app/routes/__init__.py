"""Endpoints, a file for each dialect: its requests to the worker's, events back to its JSON."""
