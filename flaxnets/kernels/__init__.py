"""Kernels: operations of layers in a second formulation where XLA's own is slow.

`platform` says which formulation is traced, and is the only part of the library that asks jax for
the platform. One file an operation: `convolution`, `matmul`, `normalization`, `pooling`,
`activation`. `folding` makes a norm part of the convolution before it, `precision` says how types
narrower than float32 are summed, `geometry` whether a window fits a map, and `onednn/` calls a
library for CPUs. Nothing here knows modules.
"""
