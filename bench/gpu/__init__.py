"""`easel bench gpu`: everything that a machine with a GPU can say about Easel, in nine minutes.

`command.py` runs each stage as a process of its own, `python -m bench.gpu STAGE`, and makes the
report. With `--tiny` the same code runs on a CPU, in tiny sizes and with Triton's interpreter.
"""
