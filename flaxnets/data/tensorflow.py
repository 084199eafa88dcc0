"""TensorFlow as a data loader: silent, on the CPU, and leaving the GPUs to JAX."""

import contextlib
import logging
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _stderr_closed():
    """Some C++ messages of the start precede or ignore every log level."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


with _stderr_closed():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # it would take all of their memory
    tf.constant(0)

logging.getLogger("tensorflow").setLevel(logging.ERROR)

__all__ = ["tf"]
