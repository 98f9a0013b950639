"""Requests and answers in the form that all dialects share."""
