"""The filters of the first layer are drawn for any network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets import InputError, create_model
from flaxnets.data.pixels.decode import Decode
from flaxnets.data.pixels.resize import Resize
from flaxnets.data.plan import Plan
from flaxnets.inference.network import Network
from flaxnets.inference.results import Card
from flaxnets.initializers import drawn
from tools import plot_filters


def network(arch: str, channels: int = 3) -> Network:
    model = create_model(arch)
    size = model.input_shape[0]
    plan = Plan((Decode(channels), Resize(size)))
    statistics = (0.5,) * channels, (0.5,) * channels
    variables = drawn(model.init)(jax.random.key(0), jnp.zeros((1, size, size, channels)))
    return Network(model, variables, plan, statistics, (), Card(arch))


def test_the_first_convolution_is_drawn_with_zero_as_grey():
    resnet = network("resnet20_cifar")
    name, kernel = plot_filters.first_filters(resnet)
    assert name == "conv1"
    np.testing.assert_array_equal(kernel, resnet.variables["params"]["conv1"]["kernel"])
    images = plot_filters.tiles(kernel)
    assert images.shape == (16, 3, 3, 3)
    np.testing.assert_allclose(np.abs(images - 0.5).max((1, 2, 3)), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(images - 0.5), np.sign(np.moveaxis(kernel, -1, 0)))
    assert plot_filters.tiles(np.ones((5, 5, 2, 6))).shape == (12, 5, 5, 1)


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(InputError, match="softmax_regression has no convolution"):
        plot_filters.first_filters(network("softmax_regression", 1))
