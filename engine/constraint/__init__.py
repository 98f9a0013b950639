"""What an answer may say: automata over classes of tokens, and their use on a canvas."""
