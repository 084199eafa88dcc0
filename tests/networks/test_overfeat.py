"""What Tables 1, 3 and 5 of arXiv:1312.6229 state about OverFeat, and what its fields do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

import parity
from flaxnets import create_model
from flaxnets.inference.features import features
from flaxnets.initializers import drawn
from networks import CASES

# Side of each convolution's output, in Table 1 (for layer 2 see the model's file) and in Table 3
# before pooling.
SIDES = {
    "overfeat_fast": (56, 24, 12, 12, 12),
    "overfeat_accurate": (108, 30, 15, 15, 15, 15),
}
NATIVE = {"overfeat_fast": 231, "overfeat_accurate": 221}


def narrow_pair(name: str, **fields):
    """Return ours and torch's with few channels, and the common weights."""
    model, reference = parity.build_pair(name, CASES[name], **CASES[name].train_fields, **fields)
    x = parity.images(NATIVE[name])
    return model, reference.eval(), parity.converted(model, reference, x)


@pytest.mark.parametrize("name", SIDES)
def test_map_sizes_of_the_tables(name):
    model = create_model(name)
    x = jnp.zeros((1, *model.input_shape))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    names = [".".join(path[:-1]) for path in flatten_dict(variables["params"])]
    layers = [name for name in dict.fromkeys(names) if name.startswith("features.")]
    layers.sort(key=lambda name: int(name.removeprefix("features.")))
    maps = jax.eval_shape(lambda v: features(model, v, x, layers), variables)
    table = zip(SIDES[name], model.channels, strict=True)
    assert [maps[name].shape for name in layers] == [
        (1, side, side, width) for side, width in table
    ]


def test_offset_pooling_interleaves_the_maps_of_all_offsets():
    """Section 3.3, Figure 3: the last pool is applied at the offsets 0, 1 and 2. Table 5: images of
    281 pixels have 20x20 features before it, and 2x2 classifier positions at each of 3x3 offsets.
    """
    model, reference, variables = narrow_pair("overfeat_accurate")
    x = parity.images(281)
    grid = jax.jit(model.clone(dense=True, offset_pooling=True).apply)(variables, x)
    assert grid.shape[1:3] == (6, 6)

    with torch.no_grad():
        *layers, pool = reference.get_submodule("features").children()
        features = torch.nn.Sequential(*layers)(parity.nchw(x))
        assert features.shape[2:] == (20, 20)
        for row, column in np.ndindex(6, 6):
            patch = pool(features[:, :, row : row + 15, column : column + 15])
            expected = reference.get_submodule("classifier")(patch.flatten(1))
            assert parity.relative_error(grid[:, row, column], expected) < 1e-5

    plain = jax.jit(model.clone(dense=True).apply)(variables, x)  # offset 0 alone
    assert parity.relative_error(grid[:, ::3, ::3], plain) < 1e-5


def test_initialisation():
    """Section 3.1 gives a mean of 0 and a standard deviation of 0.01."""
    model = create_model("overfeat_fast", **CASES["overfeat_fast"].train_fields)
    params = drawn(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))["params"]
    kernels = np.concatenate([v.ravel() for v in jax.tree.leaves(params) if v.ndim > 1])
    assert abs(kernels.mean()) < 1e-4
    assert kernels.std() == pytest.approx(0.01, rel=0.01)
    assert not any(v.any() for v in jax.tree.leaves(params) if v.ndim == 1)
