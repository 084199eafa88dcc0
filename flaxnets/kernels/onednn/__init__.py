"""oneDNN on CPUs: `library` binds its C interface, `calls` lets compiled programs call it.

`python -m flaxnets.kernels.onednn` prints whether it is used.
"""
