"""How far logits in bfloat16 are from those in float32, beside torch's under autocast."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import from_torch
from flaxnets.kernels.folding import folded_norms
from networks import CASES


def rms_error(actual: Any, expected: Any) -> float:
    """Return the root of the mean square of the errors, as a share of the values' deviation."""
    error = np.asarray(actual, np.float64) - expected
    return float(np.sqrt(np.square(error).mean()) / np.std(expected))


def correlation(actual: Any, expected: Any) -> float:
    return float(np.corrcoef(np.asarray(actual, np.float64).ravel(), np.ravel(expected))[0, 1])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_logits_are_as_close_to_float32_as_autocasts(name, train):
    """Logits are computed as by `Network` and by the training step. In evaluation, what follows a
    convolution is fused with it. In training, norms use the statistics of the batch.
    """
    model, reference = parity.build_pair(name, CASES[name], num_classes=100)
    images = parity.images(64, batch=8)
    variables = from_torch(reference.state_dict(), parity.initial_shapes(model, images))
    half = model.clone(dtype=jnp.bfloat16)

    @jax.jit
    def logits(variables, images):
        with folded_norms():
            if not train:
                return half.apply(variables, images)
        y: Any = half.apply(variables, images, train=True, mutable=["batch_stats"])
        return y[0]

    reference.train(train)
    with torch.no_grad():
        exact = reference(parity.nchw(images)).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            theirs = reference(parity.nchw(images)).float().numpy()
    ours = logits(variables, images)
    assert ours.dtype == jnp.bfloat16
    assert 0 < rms_error(ours, exact) < 1.1 * rms_error(theirs, exact)
    assert 1 - correlation(ours, exact) < 1.2 * (1 - correlation(theirs, exact))
