"""What comparison with torch's logits does not show about vision transformers: other sizes of
images, older files, initial values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import parity
from flaxnets import InputError, create_model, load_weights, to_torch
from flaxnets.convert import interpolate_positions
from flaxnets.inference.features import features
from flaxnets.weights.files import WeightsWarning
from networks import CASES
from tools.torchvision_import import torchvision

NARROW: dict[str, Any] = {
    "patch_size": 8,
    "layers": 2,
    "heads": 2,
    "features": 16,
    "mlp_features": 32,
}


def narrow(size: int, **fields):
    """Return our network, torch's, its weights in our tree, and images of `size` pixels."""
    fields = NARROW | {"image_size": size, "num_classes": 10} | fields
    model, reference = parity.build_pair("vit_b_16", CASES["vit_b_16"], **fields)
    x = parity.images(size)
    return model, reference, parity.converted(model, reference, x), x


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (3, 1), (1, 3), (14, 37)])
def test_positions_are_interpolated_as_torchvision_does(old, new):
    """The comparison is in float64. In float32 torch rounds the places of 37 points by up to
    1e-6.
    """
    embedding = np.random.default_rng(0).normal(size=(1, old**2 + 1, 6))
    weights = {"encoder.pos_embedding": torch.from_numpy(embedding)}
    interpolate = torchvision.models.vision_transformer.interpolate_embeddings
    expected = interpolate(16 * new, 16, weights)["encoder.pos_embedding"].numpy()
    ours = interpolate_positions(embedding, new**2 + 1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)
    assert interpolate_positions(embedding.astype(np.float32), new**2 + 1).dtype == np.float32
    np.testing.assert_array_equal(ours[:, 0], embedding[:, 0])  # of the class token


def test_positions_that_are_no_square_are_refused():
    with pytest.raises(InputError, match="pos_embedding has 13 positions; expected a square and"):
        interpolate_positions(np.zeros((1, 13, 2), np.float32), 17)


def test_weights_of_another_size_are_read_for_this_one(tmp_path):
    """Logits are those of torch's network of the other size with torchvision's embeddings."""
    _, reference, variables, _ = narrow(24)
    path = tmp_path / "vit.safetensors"
    save_file(to_torch(variables), path)
    fields: dict[str, Any] = {**NARROW, "image_size": 40, "num_classes": 10}
    with pytest.warns(WeightsWarning, match=r"encoder.pos_embedding is interpolated from 10 to 26"):
        ours = load_weights("vit_b_16", checkpoint=path, **fields)
    model, larger, _, x = narrow(40)
    interpolate = torchvision.models.vision_transformer.interpolate_embeddings
    larger.load_state_dict(interpolate(40, 8, reference.state_dict()))
    assert parity.logits_error(model, larger, x, ours) < 1e-5


def test_files_of_2021_name_the_linear_layers_otherwise(tmp_path):
    model, reference, variables, x = narrow(24)
    older = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in to_torch(variables).items()
    }
    assert sum("linear_" in key for key in older) == 8
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in older.items()})
    path = tmp_path / "vit.safetensors"
    save_file(older, path)
    fields: dict[str, Any] = {**NARROW, "image_size": 24}
    ours = load_weights("vit_b_16", checkpoint=path, **fields)
    assert parity.logits_error(model, reference, x, ours) < 1e-5


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((24, 32), "the images have 24x32 pixels; expected squares whose side is a multiple of 8"),
        ((20, 20), "the images have 20x20 pixels; expected squares whose side is a multiple of 8"),
        ((0, 0), "the images have 0x0 pixels"),
        ((32, 32), "have 16 patches, the network's position embeddings are for 9; expected 24x24"),
    ],
)
def test_images_of_another_size_are_refused(shape, sentence):
    model = create_model("vit_b_16", **NARROW)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    with pytest.raises(InputError, match=sentence):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, *shape, 3)))


def test_initial_values_are_torchvisions():
    """Patches start from N(0, 1 / fan_in), the encoder from uniform values of variance 2 / (in +
    out).
    """
    fields = NARROW | {"features": 96, "mlp_features": 192, "image_size": 64}
    model = create_model("vit_b_16", **fields)
    reference = torchvision.models.VisionTransformer(64, 8, 2, 2, 96, 192)
    assert parity.unlike_initial_values(model, reference, parity.images(64)) == []


def test_tokens_are_the_features_of_their_layer():
    model, reference, variables, x = narrow(24)
    theirs = []
    reference.get_submodule("encoder").register_forward_hook(
        lambda _, __, output: theirs.append(output)
    )
    with torch.no_grad():
        reference.eval()(parity.nchw(x))
    ours = features(model, variables, jnp.asarray(x), ["encoder.ln"])["encoder.ln"]
    assert ours.shape == (2, 10, 16)
    assert parity.relative_error(ours, theirs[0]) < 1e-5
