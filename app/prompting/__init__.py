"""Turns a conversation into the token ids and images that the model reads."""
