"""Kernels: the operations of layers, formulated anew where XLA is slow; nothing else knows
platforms.
"""
