"""What tools/benchmark.py measures: a file for each kind of question. None of them reads the
command line or writes files.
"""
