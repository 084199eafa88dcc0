"""Every network has a recipe for both kinds of images, at a size that it can read."""

import dataclasses
import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxnets import InputError, create_model, list_models, train
from flaxnets.convert import torch_keys
from flaxnets.models import VARIANTS
from flaxnets.recipes import Preprocessing, Recipe, recipe_for
from flaxnets.recipes.torchvision import VERSIONS
from networks import CASES, SMALL, with_marks


@functools.cache
def fits(name: str, size: int) -> bool:
    """Return whether a network reads images of a size; repeated blocks are left out."""
    model = create_model(name, num_classes=10, **CASES[name].cut_fields)
    images = jnp.zeros((2, size, size, 3))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return logits.shape == (2, 10)


@pytest.mark.parametrize("kind", ["photographs", "small images"])
@pytest.mark.parametrize("name", with_marks(list_models()))
def test_a_row_whose_images_fit_the_network(name, kind):
    """A deeper network reads the sizes that the first network of its class reads."""
    recipe = recipe_for(name, kind)
    recipe.check()
    size = recipe.preprocessing.image_size
    model = create_model(name, num_classes=10)
    if (size, size) == model.input_shape[:2]:
        return  # tests/parity traces every network at its own size
    if CASES[name].deeper:
        of_class = (n for n, build in VARIANTS.items() if build.func is VARIANTS[name].func)
        first = next(other for other in of_class if not CASES[other].deeper)
        if recipe_for(first, kind).preprocessing.image_size == size:
            name = first
    assert fits(name, size)


def test_rows_of_features_are_for_the_networks_of_a_first_course():
    for name in ("softmax_regression", "perceptron", "mlp", "linear_regression"):
        recipe = recipe_for(name, "rows")
        recipe.check()
        assert recipe.preprocessing.image_size == 1
    with pytest.raises(InputError, match="vgg16 does not read rows of features; expected one"):
        recipe_for("vgg16", "rows")


def test_rows_are_the_papers():
    """A few recipes have the values that a reader finds in the papers."""
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
    zfnet = recipe_for("zfnet", "photographs")
    assert (zfnet.batch_size, zfnet.epochs, zfnet.learning_rate) == (128, 70, 0.01)
    prelu_net = recipe_for("prelu_net_c", "photographs")
    assert (prelu_net.batch_size, prelu_net.epochs, prelu_net.weight_decay) == (128, 80, 5e-4)
    values = prelu_net.preprocessing
    assert (values.resize, values.resize_max, values.image_size) == (256, 512, 224)
    assert recipe_for("plain34", "photographs") == recipe_for("resnet34", "photographs")
    for name in ("plain110_cifar", "preact_resnet164_cifar"):
        row = recipe_for(name, "small images")
        assert dataclasses.replace(row, warmup_epochs=0.0) == resnet
    assert recipe_for("densenet_40_12", "small images").epochs == 300
    small = recipe_for("alexnet_cifar", "small images")
    assert small.weight_decay * dict(small.decay_factors)["fc10.weight"] == 1  # cuda-convnet's wc


def test_rate_factors_name_parameters_and_replace_those_of_the_recipe():
    ((pattern, factor),) = recipe_for("nin_cifar", "small images").rate_factors
    model = create_model("nin_cifar")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    keys = fnmatch.filter(jax.tree.leaves(torch_keys(variables)), pattern)
    assert (sorted(keys), factor) == (["mlpconv3.cccp2.bias", "mlpconv3.cccp2.weight"], 0.1)
    arguments = ["--rate-factors", "mlpconv1.*", "0.5", "mlpconv2.*", "2"]
    for arch in ("nin_cifar", "lenet5"):
        options, _ = train.parse(["--arch", arch, *arguments])
        assert options.values.rate_factors == (("mlpconv1.*", 0.5), ("mlpconv2.*", 2.0))


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t"])
def test_patterns_without_decay_name_parameters(name):
    model = create_model(name, **SMALL[name].fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    keys = jax.tree.leaves(torch_keys(shapes))
    versions: list[Any] = ["paper", "torchvision-v1"]
    patterns = {p for v in versions for p in recipe_for(name, "photographs", v).no_decay}
    assert patterns
    assert all(fnmatch.filter(keys, pattern) for pattern in patterns)


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
    values = second.preprocessing
    assert (values.train_size, values.image_size, values.resize, values.repeats) == (
        176, 224, 232, 4,
    )  # fmt: skip
    assert (values.policy, values.pca_std) == ("trivial_augment_wide", 0)

    small = recipe_for("resnet20_cifar", "small images", "torchvision-v2").preprocessing
    assert (small.image_size, small.resize, small.pad, small.train_size) == (32, 32, 4, 0)
    assert recipe_for("inception_v3", "photographs", "torchvision-v2").preprocessing.resize == 342
    with pytest.raises(InputError, match="torchvision-v1 does not train googlenet; expected"):
        recipe_for("googlenet", "photographs", "torchvision-v1")
    with pytest.raises(InputError, match="does not train rows of features with mlp"):
        recipe_for("mlp", "rows", "torchvision-v2")


# Options of references/classification/train.py with the values in the README.md beside it.
NEW = {
    "batch_size": 128, "lr": 0.5, "lr_scheduler": "cosine", "lr_warmup_epochs": 5,
    "auto_augment": "trivial_augment_wide", "epochs": 600, "random_erase": 0.1,
    "weight_decay": 2e-5, "norm_weight_decay": 0.0, "label_smoothing": 0.1, "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0, "train_crop_size": 176, "model_ema": True, "val_resize_size": 232,
    "ra_reps": 4,
}  # fmt: skip
REGNET = {
    "epochs": 100, "weight_decay": 5e-5, "lr_scheduler": "cosine", "lr_warmup_epochs": 5,
    "lr_warmup_decay": 0.1,
}  # fmt: skip
VIT = {
    "epochs": 300, "batch_size": 512, "opt": "adamw", "lr": 0.003, "weight_decay": 0.3,
    "lr_scheduler": "cosine", "lr_warmup_epochs": 30, "lr_warmup_decay": 0.033,
    "label_smoothing": 0.11, "mixup_alpha": 0.2, "auto_augment": "rand_augment",
    "clip_grad_norm": 1.0, "ra_reps": 3, "cutmix_alpha": 1.0, "model_ema": True,
}  # fmt: skip
TABLE = "*.relative_position_bias_table"
SWIN = {
    "epochs": 300, "batch_size": 128, "opt": "adamw", "lr": 0.001, "weight_decay": 0.05,
    "norm_weight_decay": 0.0, "no_decay": ("*.bias", TABLE), "lr_scheduler": "cosine",
    "lr_min": 1e-5, "lr_warmup_epochs": 20, "lr_warmup_decay": 0.01, "label_smoothing": 0.1,
    "mixup_alpha": 0.8, "clip_grad_norm": 5.0, "cutmix_alpha": 1.0, "random_erase": 0.25,
    "interpolation": "bicubic", "auto_augment": "trivial_augment_wide", "model_ema": True,
    "ra_reps": 4, "val_resize_size": 224,
}  # fmt: skip
MAXVIT = {
    "gpus": 32, "epochs": 400, "batch_size": 128, "opt": "adamw", "lr": 3e-3, "weight_decay": 0.05,
    "lr_scheduler": "cosine", "lr_min": 1e-5, "lr_warmup_epochs": 32, "label_smoothing": 0.1,
    "mixup_alpha": 0.8, "clip_grad_norm": 1.0, "interpolation": "bicubic",
    "auto_augment": "trivial_augment_wide", "model_ema": True, "val_resize_size": 224,
    "no_decay": (TABLE,), "sync_bn": True,
}  # fmt: skip
COMMANDS = {
    "alexnet": {"lr": 1e-2},
    "vgg??": {"lr": 1e-2},
    "vgg??_bn": {},
    "resnet??": {},
    "resnet1??": {},
    "resnext50_32x4d": {"epochs": 100},
    "resnext101_32x8d": {"epochs": 100, "gpus": 64},
    "wide_resnet*": {},
    "mobilenet_v2": {
        "epochs": 300, "lr": 0.045, "weight_decay": 4e-5, "lr_step_size": 1, "lr_gamma": 0.98,
    },
    "mobilenet_v3_*": {
        "epochs": 600, "opt": "rmsprop_torch", "batch_size": 128, "lr": 0.064,
        "weight_decay": 1e-5, "lr_step_size": 2, "lr_gamma": 0.973,
        "auto_augment": "auto_augment_imagenet", "random_erase": 0.2,
    },
    "shufflenet_v2_x1_5": NEW,
    "shufflenet_v2_x2_0": NEW,
    "mnasnet[01]_[37]*": NEW,
    "efficientnet_v2_s": NEW | {
        "train_crop_size": 300, "val_crop_size": 384, "val_resize_size": 384,
    },
    "efficientnet_v2_m": NEW | {
        "train_crop_size": 384, "val_crop_size": 480, "val_resize_size": 480,
    },
    "regnet_[xy]_[48]00mf": REGNET | {"batch_size": 128, "lr": 0.8},
    "regnet_[xy]_1_6gf": REGNET | {"batch_size": 128, "lr": 0.8},
    "regnet_y_400mf": REGNET | {"batch_size": 128, "lr": 0.4},
    "regnet_[xy]_3_2gf": REGNET | {"batch_size": 64, "lr": 0.4},
    "regnet_[xy]_8gf": REGNET | {"batch_size": 64, "lr": 0.4},
    "regnet_x_16gf": REGNET | {"batch_size": 64, "lr": 0.4},
    "regnet_y_16gf": REGNET | {"batch_size": 32, "lr": 0.2},
    "regnet_[xy]_32gf": REGNET | {"batch_size": 32, "lr": 0.2},
    "convnext_*": NEW | {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "vit_[bl]_*": VIT,
    "vit_b_32": VIT | {"auto_augment": "auto_augment_imagenet"},
    "vit_l_16": NEW | {"clip_grad_norm": 1.0, "train_crop_size": 224, "ra_reps": 3},
    "swin_[tsb]": SWIN,
    "swin_v2_[tsb]": SWIN | {
        "val_resize_size": 256, "val_crop_size": 256, "train_crop_size": 256,
        "no_decay": ("*.bias",),
    },
    "maxvit_t": MAXVIT,
}  # fmt: skip


def commanded(
    *, gpus=8, batch_size=32, epochs=90, opt: Any = "sgd", lr=0.1, weight_decay=1e-4,
    norm_weight_decay=None, no_decay=(), lr_scheduler: Any = "step", lr_step_size=30, lr_gamma=0.1,
    lr_min=0.0, lr_warmup_epochs=0, lr_warmup_decay=0.01, clip_grad_norm=0.0, label_smoothing=0.0,
    mixup_alpha=0.0, cutmix_alpha=0.0, random_erase=0.0, auto_augment: Any = "none", ra_reps=1,
    interpolation: Any = "bilinear", train_crop_size=224, val_crop_size=224, val_resize_size=256,
    model_ema=False, sync_bn=False,
) -> Recipe:  # fmt: skip
    """Return the recipe of a command; defaults are the script's."""
    images = gpus * batch_size
    return Recipe(
        batch_size=images, epochs=epochs, learning_rate=lr, optimizer=opt,
        rmsprop_epsilon=0.0316 if opt == "rmsprop_torch" else Recipe.rmsprop_epsilon,
        clip_norm=clip_grad_norm, weight_decay=weight_decay,
        decay_norms=norm_weight_decay is None, no_decay=no_decay, schedule=lr_scheduler,
        step_epochs=lr_step_size, factor=lr_gamma, final_rate=lr_min,
        warmup_epochs=lr_warmup_epochs, warmup_factor=lr_warmup_decay if lr_warmup_epochs else 0.0,
        label_smoothing=label_smoothing, random_erasing=random_erase, mixup=mixup_alpha,
        cutmix=cutmix_alpha, sync_batch_norm=sync_bn,
        # alpha = min(1, (1 - 0.99998) * world_size * batch * ema_steps / epochs)
        ema_decay=1 - 2e-5 * images * 32 / epochs if model_ema else 0.0,
        ema_steps=32 if model_ema else 1,
        preprocessing=Preprocessing(
            image_size=val_crop_size, resize=val_resize_size, crop="random_resized", pca_std=0.0,
            train_size=0 if train_crop_size == val_crop_size else train_crop_size,
            policy=auto_augment, repeats=ra_reps, interpolation=interpolation,
        ),
    )  # fmt: skip


def test_first_recipes_of_torchvision_are_its_commands():
    rows = {name: options for pattern, options in COMMANDS.items() for name in list_models(pattern)}
    for name, options in rows.items():
        assert recipe_for(name, "photographs", "torchvision-v1") == commanded(**options), name
    assert rows.keys() == VERSIONS["torchvision-v1"].keys()
    assert len(rows) == 56


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
        ({"mixup": 0.2, "loss": "squared_error"}, "mixup and CutMix blend classes, which squared"),
    ],
)
def test_impossible_values_get_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(recipe_for("lenet5", "small images"), **values).check()
