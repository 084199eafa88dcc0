"""Recipes of torchvision: the commands of its weights (references/classification/README.md)."""

from dataclasses import replace

from flaxnets.recipes.recipe import Preprocessing, Recipe, matching

# 8 GPUs with 32 images each, 90 epochs; rate 0.1, divided by 10 every 30 epochs; decay 1e-4; crops
# of random area and aspect ratio. AlexNet and VGG without batch norm have a tenth of the rate.
# ResNeXts are trained for 100 epochs, the 101-layer one on 64 GPUs.
BASE = Recipe(
    batch_size=256, epochs=90, learning_rate=0.1, weight_decay=1e-4,
    schedule="step", step_epochs=30,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip
PLAIN = replace(BASE, learning_rate=0.01)
RESNEXT = replace(BASE, epochs=100)


def _decay(batch_size: int, epochs: int) -> float:
    """Return the decay of the moving average, which is updated every 32 steps.

    It is 0.99998 per image and epoch (references/classification/train.py).
    """
    return 1 - 2e-5 * batch_size * 32 / epochs


# The command of pytorch/vision#3995 ("new recipe with FixRes"), with the repeated augmentation of
# the published weights: 8 GPUs with 128 images each; warm-up starts at a hundredth of the rate.
NEW = Recipe(
    batch_size=1024, epochs=600, learning_rate=0.5, schedule="cosine",
    warmup_epochs=5, warmup_factor=0.01, weight_decay=2e-5, decay_norms=False,
    label_smoothing=0.1, random_erasing=0.1, mixup=0.2, cutmix=1.0,
    ema_decay=_decay(1024, 600), ema_steps=32,
    preprocessing=Preprocessing(
        train_size=176, resize=232, crop="random_resized",
        policy="trivial_augment_wide", pca_std=0.0, repeats=4,
    ),
)  # fmt: skip

# 300 epochs; rate 0.045, times 0.98 every epoch; decay 4e-5.
MOBILENET_V2 = replace(
    BASE, epochs=300, learning_rate=0.045, weight_decay=4e-5, step_epochs=1, factor=0.98
)

# 8 GPUs with 128 images each, 600 epochs; torch's RMSProp (decay 0.9, epsilon 0.0316); rate 0.064,
# times 0.973 every two epochs; decay 1e-5, AutoAugment, erasing. The published weights are the mean
# of the last three checkpoints that improved the accuracy; `tools/convert_torchvision.py --average`
# computes the mean of a run's newest checkpoints.
MOBILENET_V3 = Recipe(
    batch_size=1024, epochs=600, learning_rate=0.064, weight_decay=1e-5,
    optimizer="rmsprop_torch", rmsprop_decay=0.9, rmsprop_epsilon=0.0316,
    schedule="step", step_epochs=2, factor=0.973, random_erasing=0.2,
    preprocessing=Preprocessing(
        crop="random_resized", policy="auto_augment_imagenet", pca_std=0.0
    ),
)  # fmt: skip

# 100 epochs, decay 5e-5; a cosine after five epochs of warm-up from a tenth of the rate. 8 GPUs,
# with 128 images each for small networks, 64 for medium and 32 for large ones, and proportional
# rates.
REGNET_SMALL = Recipe(
    batch_size=1024, epochs=100, learning_rate=0.8, weight_decay=5e-5,
    schedule="cosine", warmup_epochs=5, warmup_factor=0.1,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip
REGNET_MEDIUM = replace(REGNET_SMALL, batch_size=512, learning_rate=0.4)
REGNET_LARGE = replace(REGNET_SMALL, batch_size=256, learning_rate=0.2)


def _efficientnet_v2(train_size: int, image_size: int) -> Recipe:
    """Return the new command at other sizes; it ran on 32 GPUs with 32 images each."""
    sizes = {"train_size": train_size, "image_size": image_size, "resize": image_size}
    return replace(NEW, preprocessing=replace(NEW.preprocessing, **sizes))


# The new command with AdamW, on 16 GPUs with 64 images each. The short side before the crop was
# chosen for each network after training (`published_weights(arch).resize`).
CONVNEXT = replace(NEW, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05)

# 64 GPUs with 64 images each, 300 epochs; AdamW with rate 0.003 and decay 0.3 of all parameters; 30
# epochs of warm-up from 0.033 of the rate; RandAugment (AutoAugment for vit_b_32). Augmentation is
# repeated three times, which is the script's default.
VIT = Recipe(
    batch_size=4096, epochs=300, learning_rate=3e-3, optimizer="adamw", weight_decay=0.3,
    schedule="cosine", warmup_epochs=30, warmup_factor=0.033, clip_norm=1.0,
    label_smoothing=0.11, mixup=0.2, cutmix=1.0, ema_decay=_decay(4096, 300), ema_steps=32,
    preprocessing=Preprocessing(
        crop="random_resized", policy="rand_augment", pca_std=0.0, repeats=3
    ),
)  # fmt: skip
VIT_B_32 = replace(VIT, preprocessing=replace(VIT.preprocessing, policy="auto_augment_imagenet"))
# The new command with clipped gradients, at the same size in training and evaluation.
VIT_L_16 = replace(
    NEW, clip_norm=1.0, preprocessing=replace(NEW.preprocessing, train_size=0, repeats=3)
)

# 300 epochs; AdamW with a cosine from 0.001 to 1e-5 after 20 epochs of warm-up from a hundredth of
# the rate; decay 0.05 except for norms, biases and bias tables; bicubic interpolation. Version 2
# has no bias tables and reads 256 pixels.
SWIN = Recipe(
    batch_size=1024, epochs=300, learning_rate=1e-3, optimizer="adamw", weight_decay=0.05,
    decay_norms=False, no_decay=("*.bias", "*.relative_position_bias_table"),
    schedule="cosine", final_rate=1e-5, warmup_epochs=20, warmup_factor=0.01, clip_norm=5.0,
    label_smoothing=0.1, random_erasing=0.25, mixup=0.8, cutmix=1.0,
    ema_decay=_decay(1024, 300), ema_steps=32,
    preprocessing=Preprocessing(
        resize=224, crop="random_resized", interpolation="bicubic",
        policy="trivial_augment_wide", pca_std=0.0, repeats=4,
    ),
)  # fmt: skip
SWIN_V2 = replace(
    SWIN, no_decay=("*.bias",),
    preprocessing=replace(SWIN.preprocessing, image_size=256, resize=256),
)  # fmt: skip

# 32 GPUs with 128 images each, 400 epochs; AdamW with a cosine from 0.003 to 1e-5 after 32 epochs
# of warm-up; decay 0.05 except for the bias tables. TrivialAugment-wide draws its magnitudes; the
# command's "policy magnitude 15" is an option that the script does not have.
MAXVIT = Recipe(
    batch_size=4096, epochs=400, learning_rate=3e-3, optimizer="adamw", weight_decay=0.05,
    no_decay=("*.relative_position_bias_table",),
    schedule="cosine", final_rate=1e-5, warmup_epochs=32, warmup_factor=0.01, clip_norm=1.0,
    label_smoothing=0.1, mixup=0.8, ema_decay=_decay(4096, 400), ema_steps=32,
    sync_batch_norm=True,
    preprocessing=Preprocessing(
        resize=224, crop="random_resized", interpolation="bicubic",
        policy="trivial_augment_wide", pca_std=0.0,
    ),
)  # fmt: skip

# The new command for networks that read one size.
NEW_AT_ONE_SIZE = replace(NEW, preprocessing=replace(NEW.preprocessing, train_size=0))

VERSIONS = {
    # The commands of IMAGENET1K_V1.
    "torchvision-v1": matching(
        ("alexnet", PLAIN),
        ("vgg??", PLAIN),
        ("vgg??_bn", BASE),
        ("resnet??", BASE),
        ("resnet???", BASE),
        ("resnext50_32x4d", RESNEXT),
        ("resnext101_32x8d", replace(RESNEXT, batch_size=2048)),
        ("wide_resnet*", BASE),
        ("mobilenet_v2", MOBILENET_V2),
        ("mobilenet_v3_*", MOBILENET_V3),
        ("shufflenet_v2_x1_5", NEW),
        ("shufflenet_v2_x2_0", NEW),
        ("mnasnet0_75", NEW),  # pytorch/vision#6019, which trained mnasnet1_3 too
        ("mnasnet1_3", NEW),
        ("efficientnet_v2_s", _efficientnet_v2(300, 384)),
        ("efficientnet_v2_m", _efficientnet_v2(384, 480)),
        ("regnet_?_?00mf", REGNET_SMALL),
        ("regnet_?_1_6gf", REGNET_SMALL),
        ("regnet_y_400mf", replace(REGNET_SMALL, learning_rate=0.4)),
        ("regnet_?_3_2gf", REGNET_MEDIUM),
        ("regnet_?_8gf", REGNET_MEDIUM),
        ("regnet_x_16gf", REGNET_MEDIUM),
        ("regnet_y_16gf", REGNET_LARGE),
        ("regnet_?_32gf", REGNET_LARGE),
        ("convnext_*", CONVNEXT),
        ("vit_b_16", VIT),
        ("vit_b_32", VIT_B_32),
        ("vit_l_16", VIT_L_16),
        ("vit_l_32", VIT),
        ("swin_?", SWIN),
        ("swin_v2_?", SWIN_V2),
        ("maxvit_t", MAXVIT),
    ),
    # The command of IMAGENET1K_V2, for every network.
    "torchvision-v2": matching(
        ("*", NEW), ("vit_*", NEW_AT_ONE_SIZE), ("maxvit_t", NEW_AT_ONE_SIZE)
    ),
}
