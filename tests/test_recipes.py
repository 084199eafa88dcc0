"""Every network has a row for both kinds of images, at a size that it can take."""

import fnmatch

import jax
import jax.numpy as jnp
import pytest

from experiments import train
from flaxnets import InputError, create_model, list_models
from flaxnets.convert import torch_keys
from flaxnets.recipes import recipe_for


@pytest.mark.parametrize("kind", ["photographs", "small images"])
@pytest.mark.parametrize("name", list_models())
def test_a_row_whose_images_fit_the_network(name, kind):
    recipe = recipe_for(name, kind)
    recipe.check()
    size = recipe.preprocessing.image_size
    model = create_model(name, num_classes=10)
    if (size, size) == model.input_shape[:2]:
        return  # test_models.py traces every network at its own size
    images = jnp.zeros((2, size, size, 3))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 10)


def test_rows_of_features_are_for_the_networks_of_a_first_course():
    for name in ("softmax_regression", "perceptron", "mlp", "linear_regression"):
        recipe = recipe_for(name, "rows")
        recipe.check()
        assert recipe.preprocessing.image_size == 1
    with pytest.raises(InputError, match="vgg16 does not read rows; expected one of softmax_regr"):
        recipe_for("vgg16", "rows")


def test_rows_are_the_papers():
    """A few facts that a reader would look up."""
    alexnet = recipe_for("alexnet_2012", "photographs")
    assert (alexnet.batch_size, alexnet.momentum, alexnet.weight_decay) == (128, 0.9, 5e-4)
    assert (alexnet.learning_rate, alexnet.schedule, alexnet.epochs) == (0.01, "plateau", 90)
    assert alexnet.preprocessing.pca_std == 0.1
    mean, std = alexnet.normalization(((0.25,), (0.5,)))  # "centered raw RGB values"
    assert [(value / 255 - mean[0]) / std[0] for value in (0, 255)] == [-63.75, 191.25]
    vgg = recipe_for("vgg16", "photographs")
    assert (vgg.batch_size, vgg.epochs, vgg.learning_rate) == (256, 74, 0.01)
    assert recipe_for("vgg16_bn", "photographs").step_epochs == 30
    resnet = recipe_for("resnet56_cifar", "small images")
    steps = 50_000 // resnet.batch_size
    assert round(resnet.epochs * steps, -3) == 64_000
    assert [round(m * steps, -3) for m in resnet.milestones] == [32_000, 48_000]
    assert recipe_for("resnet50", "photographs").weight_decay == 1e-4
    assert recipe_for("wrn_28_10", "small images").factor == 0.2


def test_rate_factors_name_parameters_and_can_be_given_where_the_row_has_some():
    ((pattern, factor),) = recipe_for("nin_cifar", "small images").rate_factors
    model = create_model("nin_cifar")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    found = fnmatch.filter(jax.tree.leaves(torch_keys(variables)), pattern)
    assert (sorted(found), factor) == (["mlpconv3.cccp2.bias", "mlpconv3.cccp2.weight"], 0.1)
    given = ["--rate-factors", "mlpconv1.*", "0.5", "mlpconv2.*", "2"]
    for arch in ("nin_cifar", "lenet5"):
        options, _ = train.parse(["--arch", arch, *given])
        assert options.recipe.rate_factors == (("mlpconv1.*", 0.5), ("mlpconv2.*", 2.0))
