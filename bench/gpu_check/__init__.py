"""The stages of `bench/gpu_check.sh`, which checks Easel on a machine with a GPU.

`python -m bench.gpu_check STAGE` runs one stage in a process of its own. With GPU_CHECK_TINY=1 the
same code runs on a CPU, in tiny sizes and with Triton's interpreter.
"""
