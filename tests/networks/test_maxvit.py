"""What comparison with torch's logits does not show about MaxViT: other sizes, initial values."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import parity
from flaxnets import InputError, create_model
from networks import CASES
from networks.maxvit import NARROW, maxvit

FIELDS: dict[str, Any] = {**NARROW, "num_classes": 10}


def test_a_grid_spreads_over_larger_images():
    """With twice the side there are four times as many windows, and positions of a grid are twice
    as far apart. torch needs another network for this size.
    """
    model, reference = parity.build_pair("maxvit_t", CASES["maxvit_t"], **FIELDS)
    larger = maxvit(pixels=64, **FIELDS)
    larger.load_state_dict(reference.state_dict())
    variables = parity.converted(model, reference, parity.images(32))
    assert parity.logits_error(model, larger, parity.images(64), variables) < 1e-5
    wide = jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 64, 3)))
    assert wide.shape == (2, 10)


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (0, 32)])
def test_images_of_other_sizes_are_refused(shape):
    model = create_model("maxvit_t", **FIELDS)
    height, width = shape
    with pytest.raises(InputError, match=f"have {height}x{width} pixels; expected multiples of 32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape, 3)))


def test_initial_values_are_torchvisions():
    model, reference = create_model("maxvit_t", **FIELDS), maxvit(vary=False, **FIELDS)
    assert parity.unlike_initial_values(model, reference, parity.images(32)) == []
