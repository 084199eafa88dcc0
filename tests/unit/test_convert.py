"""The converter's errors and its independence of how values come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxnets import InputError, create_model, from_torch, to_torch
from flaxnets.initializers import drawn


@pytest.fixture(scope="module")
def lenet():
    model = create_model("lenet5")
    return model, drawn(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def test_keys_and_layouts_are_torchs(lenet):
    _, variables = lenet
    shapes = {key: value.shape for key, value in to_torch(variables).items()}
    assert shapes == {
        "features.0.weight": (6, 1, 5, 5), "features.0.bias": (6,),
        "features.3.weight": (16, 6, 5, 5), "features.3.bias": (16,),
        "classifier.0.weight": (120, 256), "classifier.0.bias": (120,),
        "classifier.2.weight": (84, 120), "classifier.2.bias": (84,),
        "classifier.4.weight": (10, 84), "classifier.4.bias": (10,),
    }  # fmt: skip


def test_tensors_arrays_and_half_precision_convert_alike(lenet):
    _, variables = lenet
    arrays = to_torch(variables)
    tensors = {k: torch.nn.Parameter(torch.from_numpy(v)) for k, v in arrays.items()}
    for leaf, other in zip(
        jax.tree.leaves(from_torch(arrays, variables)),
        jax.tree.leaves(from_torch(tensors, variables)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, other)
    halves = {k: v.detach().bfloat16() for k, v in tensors.items()}
    assert jax.tree.leaves(from_torch(halves, variables))[0].dtype == np.float32


def test_one_error_lists_every_difference(lenet):
    _, variables = lenet
    state_dict = to_torch(variables)
    del state_dict["features.0.bias"]
    state_dict["features.7.weight"] = np.zeros(3, np.float32)
    state_dict["classifier.4.weight"] = np.zeros((1000, 84), np.float32)
    state_dict["features.1.num_batches_tracked"] = np.array(7)  # ignored
    with pytest.raises(InputError) as raised:
        from_torch(state_dict, variables)
    assert str(raised.value) == (
        "the weights do not fit this network: missing: features.0.bias; "
        "unused: features.7.weight; "
        "misshapen: classifier.4.weight (1000, 84), expected (10, 84)"
    )


def test_an_error_names_five_keys_of_each_kind(lenet):
    _, variables = lenet
    with pytest.raises(InputError) as raised:
        from_torch({f"a{number}": np.zeros(1) for number in range(7)}, variables)
    assert str(raised.value) == (
        "the weights do not fit this network: missing 10 keys, such as classifier.0.bias, "
        "classifier.0.weight, classifier.2.bias, classifier.2.weight, classifier.4.bias; "
        "unused 7 keys, such as a0, a1, a2, a3, a4"
    )


def test_a_transposed_linear_layer_is_refused(lenet):
    _, variables = lenet
    state_dict = to_torch(variables)
    state_dict["classifier.2.weight"] = state_dict["classifier.2.weight"].T
    with pytest.raises(InputError, match=r"misshapen: classifier.2.weight \(120, 84\)"):
        from_torch(state_dict, variables)


def test_leaves_that_rank_says_nothing_about_are_kept():
    """torch's buffers of integers come from shapes, flattened for Swin, a matrix for MaxViT."""
    rng = np.random.default_rng(0)
    swin = {"logit_scale": rng.normal(size=(3, 1, 1)), "qkv.bias": rng.normal(size=6)}
    swin["relative_position_bias_table"] = rng.normal(size=(9, 3))
    params = {
        "class_token": rng.normal(size=(1, 1, 4)),
        "encoder.pos_embedding": rng.normal(size=(1, 5, 4)),
        "swin": swin,
        "maxvit": {"partition_bias_table": rng.normal(size=(9, 3))},
    }
    coords = rng.normal(size=(1, 5, 5, 2))
    variables = {"params": params, "buffers": {"v2": {"relative_coords_table": coords}}}
    state_dict = to_torch(variables)
    index = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]  # of a window of 2x2
    np.testing.assert_array_equal(state_dict["maxvit.relative_position_index"], index)
    np.testing.assert_array_equal(state_dict["swin.relative_position_index"], np.ravel(index))
    assert state_dict["v2.relative_position_index"].shape == (81,)
    assert state_dict["maxvit.relative_position_bias_table"].shape == (9, 3)
    assert state_dict["swin.logit_scale"].shape == (3, 1, 1)
    back = from_torch(state_dict, variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    state_dict["class_token"] = state_dict["class_token"].T
    with pytest.raises(InputError, match=r"class_token \(4, 1, 1\), expected \(1, 1, 4\)"):
        from_torch(state_dict, variables)
