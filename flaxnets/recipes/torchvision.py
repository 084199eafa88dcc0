"""The commands that trained torchvision's weights (references/classification/README.md)."""

from dataclasses import replace

from flaxnets.recipes.recipe import Preprocessing, Recipe, matching

# 8 GPUs with 32 images each, 90 epochs, rate 0.1 divided by 10 every 30, decay 1e-4, crops of any
# size and shape. AlexNet and VGG without batch norm take a tenth of the rate, ResNeXts 100 epochs,
# the 101-layer one 64 GPUs.
BASE = Recipe(
    batch_size=256, epochs=90, learning_rate=0.1, weight_decay=1e-4,
    schedule="step", step_epochs=30,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip
PLAIN = replace(BASE, learning_rate=0.01)
RESNEXT = replace(BASE, epochs=100)

# The command of pytorch/vision#3995 ("new recipe with FixRes") with the repeated augmentation that
# the published weights had: 8 GPUs with 128 images each; the rate rises from a hundredth. The decay
# of the average is 0.99998 in units of one image an epoch: 1 - 2e-5 * 1024 * 32 / 600 every 32
# steps (references/classification/train.py).
NEW = Recipe(
    batch_size=1024, epochs=600, learning_rate=0.5, schedule="cosine",
    warmup_epochs=5, warmup_factor=0.01, weight_decay=2e-5, decay_norms=False,
    label_smoothing=0.1, random_erasing=0.1, mixup=0.2, cutmix=1.0,
    ema_decay=1 - 2e-5 * 1024 * 32 / 600, ema_steps=32,
    preprocessing=Preprocessing(
        train_size=176, resize=232, crop="random_resized",
        policy="trivial_augment_wide", pca_std=0.0, repeats=4,
    ),
)  # fmt: skip

VERSIONS = {
    "torchvision-v1": matching(
        ("alexnet", PLAIN),
        ("vgg??", PLAIN),
        ("vgg??_bn", BASE),
        ("resnet??", BASE),
        ("resnet???", BASE),
        ("resnext50_32x4d", RESNEXT),
        ("resnext101_32x8d", replace(RESNEXT, batch_size=2048)),
        ("wide_resnet*", BASE),
    ),
    "torchvision-v2": matching(("*", NEW)),
}
