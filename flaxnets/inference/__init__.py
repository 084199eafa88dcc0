"""Inference: open trained networks, classify pictures, compute maps and features."""
