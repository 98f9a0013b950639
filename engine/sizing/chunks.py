"""The sizes in which work on the vocabulary is cut. Plain Python: the plan counts with them too."""

VOCAB_CHUNK = 4096  # entries that are worked on together; 1,024 to 8,192 are equally fast on a CPU
VOCAB_GROUP = 256  # entries whose probabilities are kept as one sum
GATHERED_ROWS = 64  # rows whose groups are copied together: 1.4 MB each in the released model
