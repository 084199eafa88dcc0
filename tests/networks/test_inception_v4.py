"""What the figures of arXiv:1602.07261 state about Inception-v4 and the Inception-ResNets, and what
their fields do.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model, to_torch
from flaxnets.models import inception_resnet
from networks import CASES

NAMES = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")
ONE_OF_EACH = {"depths": (1, 1, 1), "num_classes": 10}

# Figures 3-15: positions and channels at the end of each stage, by the name of its last block. The
# channels of version 2 are those of the published weights.
GRIDS = {
    "inception_v4": {
        "features.5": (35, 384),
        "features.9": (35, 384),
        "features.10": (17, 1024),
        "features.17": (17, 1024),
        "features.18": (8, 1536),
        "features.21": (8, 1536),
    },
    "inception_resnet_v1": {
        "conv2d_4b": (35, 256),
        "repeat.4": (35, 256),
        "mixed_6a": (17, 896),
        "repeat_1.9": (17, 896),
        "mixed_7a": (8, 1792),
        "repeat_2.4": (8, 1792),
    },
    "inception_resnet_v2": {
        "mixed_5b": (35, 320),
        "repeat.9": (35, 320),
        "mixed_6a": (17, 1088),
        "repeat_1.19": (17, 1088),
        "mixed_7a": (8, 2080),
        "repeat_2.8": (8, 2080),
        "block8": (8, 2080),
        "conv2d_7b": (8, 1536),
    },
}


def shapes(model, size: int = 299, channels: int = 3):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))


@pytest.mark.parametrize("name", NAMES)
def test_grids_of_the_figures(name):
    model = create_model(name)

    def outputs(variables, x):
        return model.apply(variables, x, capture_intermediates=True)[1]["intermediates"]

    tree = jax.eval_shape(outputs, shapes(model), jnp.zeros((1, 299, 299, 3)))
    for path, (positions, channels) in GRIDS[name].items():
        node = tree
        for key in path.split("."):
            node = node[key]
        (output,) = node["__call__"]
        assert output.shape == (1, positions, positions, channels), path


def test_residuals_are_scaled_as_section_3_3_advises():
    assert all(0.1 <= scale <= 0.3 for scale in inception_resnet.SCALES)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("inception_v4", 8), ("inception_resnet_v1", 3), ("inception_resnet_v2", 4)],
)
def test_remat_recomputes_every_block_of_the_same_tree(name, blocks):
    model = create_model(name, remat=True, **ONE_OF_EACH)
    variables = shapes(model)
    assert variables == shapes(model.clone(remat=False))
    jaxpr = jax.make_jaxpr(model.apply)(variables, jnp.zeros((1, 75, 75, 3)))
    assert sum("remat" in eqn.primitive.name for eqn in jaxpr.eqns) == blocks


@pytest.mark.slow
def test_remat_changes_neither_gradients_nor_statistics():
    name = "inception_resnet_v1"
    model, reference = parity.build_pair(name, CASES[name], **ONE_OF_EACH)
    x = parity.images(75, batch=3).astype(np.float64)
    variables = parity.converted(model, reference, x)

    @functools.partial(parity.jit_quickly, static_argnames="remat")
    def gradients(params, rest, remat):
        def loss(params):
            network = model.clone(remat=remat, dtype=jnp.float64)
            logits, updates = network.apply(
                {"params": params, **rest}, x, train=True, mutable="batch_stats"
            )
            return jnp.square(logits).sum(), updates

        return jax.grad(loss, has_aux=True)(params)

    with jax.enable_x64():
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
        expected, actual = (gradients(params, rest, remat=remat) for remat in (False, True))
        expected, actual = (
            {**to_torch({"params": g}), **to_torch(s)} for g, s in (expected, actual)
        )
    assert parity.largest_error(actual, {k: torch.tensor(v) for k, v in expected.items()}) < 1e-9
