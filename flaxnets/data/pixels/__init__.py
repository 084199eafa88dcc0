"""Pixels: what a picture's bytes become before a network sees them.

One module a kind of operation; `flaxnets.data.plan` puts operations in order. Every operation is a
frozen dataclass whose fields are its values, so that a run can write down what it did.
"""
