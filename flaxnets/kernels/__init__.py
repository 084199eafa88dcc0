"""Kernels: operations of layers in a second formulation where XLA's own is slow.

`platform` says which formulation is traced. It is the only part of the library that asks jax for
the platform. Each operation has one file, such as `convolution`, `matmul`, `normalization`,
`pooling` and `activation`. `folding` fuses what follows a convolution into it, `precision` says how
types narrower than float32 are summed, and `geometry` whether a window fits a map. `xla` is XLA's
own convolution, and `onednn/` calls a library for CPUs. Nothing here knows modules.
"""
