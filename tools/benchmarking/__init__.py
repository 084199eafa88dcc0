"""What tools/benchmark.py measures: a file for each kind of question, none of which reads options
of the command line or writes files.
"""
