"""Pixels: the operations that turn a picture's bytes into network input.

Each kind of operation has a module. `flaxnets.data.plan` puts operations in order. Every operation
is a frozen dataclass whose fields are its values, so that a run can store it.
"""
