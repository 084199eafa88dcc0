"""Every network has a row for both kinds of images, at a size that it can take."""

import dataclasses
import fnmatch

import jax
import jax.numpy as jnp
import pytest

from flaxnets import InputError, create_model, train
from flaxnets.convert import torch_keys
from flaxnets.recipes import recipe_for
from flaxnets.recipes.torchvision import VERSIONS
from networks import EVERY_NETWORK


@pytest.mark.parametrize("kind", ["photographs", "small images"])
@pytest.mark.parametrize("name", EVERY_NETWORK)
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
        assert options.values.rate_factors == (("mlpconv1.*", 0.5), ("mlpconv2.*", 2.0))


def test_recipes_of_torchvision_are_its_commands():
    first = recipe_for("resnet50", "photographs", "torchvision-v1")
    assert (first.batch_size, first.epochs, first.learning_rate) == (256, 90, 0.1)
    assert (first.schedule, first.step_epochs, first.factor) == ("step", 30, 0.1)
    assert (first.weight_decay, first.preprocessing.crop) == (1e-4, "random_resized")
    assert recipe_for("vgg16", "photographs", "torchvision-v1").learning_rate == 0.01
    assert recipe_for("vgg16_bn", "photographs", "torchvision-v1").learning_rate == 0.1
    assert recipe_for("resnext101_32x8d", "photographs", "torchvision-v1").batch_size == 64 * 32

    second = recipe_for("resnet50", "photographs", "torchvision-v2")
    assert (second.batch_size, second.epochs, second.learning_rate) == (8 * 128, 600, 0.5)
    assert (second.schedule, second.warmup_epochs, second.warmup_factor) == ("cosine", 5, 0.01)
    assert (second.weight_decay, second.decay_norms, second.label_smoothing) == (2e-5, False, 0.1)
    assert (second.random_erasing, second.mixup, second.cutmix) == (0.1, 0.2, 1.0)
    # alpha = min(1, (1 - 0.99998) * world_size * batch * ema_steps / epochs)
    assert second.ema_decay == pytest.approx(1 - 0.00002 * (8 * 128 * 32 / 600))
    how = second.preprocessing
    assert (how.train_size, how.image_size, how.resize, how.repeats) == (176, 224, 232, 4)
    assert (how.policy, how.pca_std) == ("trivial_augment_wide", 0)

    small = recipe_for("resnet20_cifar", "small images", "torchvision-v2").preprocessing
    assert (small.image_size, small.resize, small.pad, small.train_size) == (32, 32, 4, 0)
    assert recipe_for("inception_v3", "photographs", "torchvision-v2").preprocessing.resize == 342
    with pytest.raises(InputError, match="torchvision-v1 does not train googlenet; expected"):
        recipe_for("googlenet", "photographs", "torchvision-v1")
    with pytest.raises(InputError, match="does not train rows of features with mlp"):
        recipe_for("mlp", "rows", "torchvision-v2")


@pytest.mark.parametrize("version", ["torchvision-v1", "torchvision-v2"])
def test_every_row_of_torchvision_is_possible(version):
    for name in VERSIONS[version]:
        for kind in ("photographs", "small images"):
            recipe_for(name, kind, version).check()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ema_decay": 1.5}, "ema decay is 1.5; expected a number from 0 to 1"),
        ({"gradient_accumulation": 0}, "gradient accumulation is 0; expected a positive number"),
        ({"mixup": -1.0}, "mixup is -1.0; expected zero or more"),
        ({"mixup": 0.2, "loss": "squared_error"}, "mixup and CutMix blend classes; expected the"),
    ],
)
def test_impossible_values_get_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(recipe_for("lenet5", "small images"), **values).check()
