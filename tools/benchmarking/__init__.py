"""The measurements of tools/benchmark.py and tools/gpu_check.py, one file for each kind.

None of them reads the command line or writes results to files.
"""
