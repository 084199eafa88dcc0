"""Facts about DenseNet that the comparison of every network does not state."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import create_model, layers, to_torch
from flaxnets.initializers import drawn
from flaxnets.kernels import normalization
from flaxnets.kernels.onednn import calls as onednn
from networks.densenet import CASES

SMALL = {
    "densenet121": {"depths": (1, 2, 1, 1), "growth_rate": 4},
    "densenet_bc_100_12": {"depths": (2, 1, 1), "growth_rate": 4},
}
both_stems = pytest.mark.parametrize("name", SMALL)


def small(name: str, **fields):
    return create_model(name, **{"num_classes": 3, **SMALL[name], **fields})


def shapes(model, *shape: int):
    x = jnp.zeros(shape or (1, *model.input_shape))
    return jax.eval_shape(model.init, jax.random.key(0), x)


@pytest.mark.parametrize(
    ("name", "depth", "features"),
    [
        ("densenet121", 121, 1024),
        ("densenet161", 161, 2208),
        ("densenet169", 169, 1664),
        ("densenet201", 201, 1920),
        ("densenet_bc_100_12", 100, 342),
        ("densenet_bc_250_24", 250, 1734),
        ("densenet_bc_190_40", 190, 2190),
    ],
)
def test_the_name_counts_convolutions_and_the_linear_layer(name, depth, features):
    """They are counted in torch's network. Ours has all its keys and shapes (tests/parity)."""
    reference = parity.shapes_of_reference(name, CASES[name])
    assert sum(len(shape) > 1 for shape in reference.values()) == depth
    assert reference["classifier.weight"][1] == features


def test_a_layer_reads_every_map_before_it_in_its_block():
    params = shapes(create_model("densenet121"))["params"]
    widths = [
        params[f"features.denseblock2.denselayer{n}"]["conv1"]["kernel"].shape[2]
        for n in range(1, 13)
    ]
    assert widths == list(range(128, 128 + 12 * 32, 32))
    first = params["features.denseblock1.denselayer1"]
    # two norms of 64 and 128 channels, a 1x1 convolution to 128, a 3x3 to 32
    assert sum(leaf.size for leaf in jax.tree.leaves(first)) == 128 + 8_192 + 256 + 36_864


def test_initial_weights_are_torchvisions():
    model = create_model("densenet121", depths=(1, 1, 1, 1))
    init = to_torch(drawn(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    for key, fan_in in {
        "features.conv0": 3 * 49,
        "features.denseblock1.denselayer1.conv2": 128 * 9,
        "features.transition1.conv": 96,
    }.items():
        value = init[f"{key}.weight"]
        # The sampling error of a standard deviation is 1 / sqrt(2 n); four of them are allowed.
        assert abs(value.std() / np.sqrt(2 / fan_in) - 1) < 4 / np.sqrt(2 * value.size), key
        assert abs(value).max() > 3 * value.std(), key  # not truncated
    bound = 1 / np.sqrt(init["classifier.weight"].shape[1])
    assert 0.95 * bound < abs(init["classifier.weight"]).max() <= bound
    assert not init["classifier.bias"].any()
    assert np.all(init["features.norm5.weight"] == 1)
    assert not init["features.norm5.bias"].any()


@both_stems
def test_dropout_follows_every_convolution_but_the_first(name):
    model = small(name, dropout_rate=0.5)
    calls = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            calls.append(context.module.rate)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        params = shapes(model)["params"]
    kernels = [path for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert calls == [0.5] * (len(kernels) - 2)  # nor after the linear layer
    assert create_model(name).dropout_rate == 0


@both_stems
def test_the_moments_of_each_map_are_found_once(name, monkeypatch):
    """The first norms of a block read all maps before them, but the moments of each map are
    computed once.

    They are computed for a block's first map, for each layer's map, and for the inputs of the
    second norms and of the stem's norm.
    """
    model, widths = small(name), []

    def moments(x, axis_name=None):
        widths.append(x.shape[-1])
        return jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])

    variables = shapes(model)
    monkeypatch.setattr(onednn, "available", lambda: False)  # oneDNN's norm does not need moments
    monkeypatch.setattr(normalization, "moments", moments)
    monkeypatch.setattr(layers, "moments", moments)
    x = jnp.zeros((2, *model.input_shape))
    jax.eval_shape(lambda v: model.apply(v, x, True, mutable=["batch_stats"]), variables)
    blocks, depth = len(model.depths), sum(model.depths)
    assert len(widths) == blocks + 2 * depth + (not model.small_images)


def test_dropout_acts_in_training_only():
    model, x = small("densenet_bc_100_12", dropout_rate=0.2), parity.images(32)
    variables = drawn(model.init)(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnames="train")
    def logits(seed: int, train: bool = True):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, train, mutable=["batch_stats"], rngs=rngs)[0]

    assert np.any(logits(0) != logits(1))
    np.testing.assert_array_equal(logits(0), logits(0))
    np.testing.assert_array_equal(logits(0, train=False), logits(1, train=False))
