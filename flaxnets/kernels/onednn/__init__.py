"""oneDNN on CPUs: `library` binds its C interface, `calls` lets compiled programs call it.

`convolution` and `primitives` make these calls primitives of jax, with derivatives.
`python -m flaxnets.kernels.onednn` prints whether it is used.
"""
