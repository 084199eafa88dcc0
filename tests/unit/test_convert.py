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
