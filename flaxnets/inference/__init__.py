"""Inference: what users do with trained networks."""
