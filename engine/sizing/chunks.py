"""The sizes of the pieces in which the vocabulary and attention are processed.

Plain Python, because the memory plan uses these numbers too.
"""

# Vocabulary entries that are processed together. 1,024 to 8,192 are equally fast on a CPU.
VOCAB_CHUNK = 4096
# Vocabulary entries whose probabilities are kept as one sum.
VOCAB_GROUP = 256
# Rows whose groups are copied together. Each takes 1.4 MB in the released model.
GATHERED_ROWS = 64
# Rows of a canvas whose logits exist together if a GPU draws from their likeliest tokens. In the
# released model each takes 0.5 MB in the activations' type, and 1 MB for its probabilities.
TRUNCATED_ROWS = 256
# Programs among which a GPU's kernel splits the entries that a tile of queries sees, at most.
ATTENTION_SPLITS = 4
