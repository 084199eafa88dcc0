"""oneDNN on CPUs: `library` binds its C interface, `operations` makes convolutions, batch norms and
max pools of it, `calls` lets compiled programs call them.

`convolution` and `primitives` make these calls primitives of jax, with derivatives.
`python -m flaxnets.kernels.onednn` prints whether it is used.
"""
