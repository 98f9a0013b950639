"""From a conversation to the token ids and images that the model reads."""
