"""Requests as clients send them: fields, bounds and refusals, a file for each dialect."""
