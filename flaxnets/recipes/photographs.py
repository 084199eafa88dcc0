"""Recipes for photographs, from each network's paper.

A comment before each recipe names its source and the values that the source states. Where a paper
says nothing, torchvision's base recipe is used (`torchvision.BASE`).
"""

from dataclasses import replace

from flaxnets.recipes.recipe import Preprocessing, Recipe, matching
from flaxnets.recipes.small_images import SMALL_IMAGES
from flaxnets.recipes.torchvision import BASE, REGNET_SMALL

# Krizhevsky et al. 2012, section 5: batch 128, momentum 0.9, decay 0.0005; rate 0.01, divided by 10
# "when the validation error rate stopped improving"; roughly 90 epochs. Section 4.1: crops of 224
# from 256, reflections, PCA colour with standard deviation 0.1. Section 2: "centered raw RGB
# values", for which its small initial weights are made; torchvision's network reads standardised
# values.
ALEXNET = Recipe(batch_size=128, epochs=90, learning_rate=0.01)
ALEXNET_2012 = replace(ALEXNET, pixels="centered")

# Zeiler & Fergus 2013, section 3: batch 128, momentum 0.9; rate 0.01, "annealed manually when the
# validation error plateaus"; 70 epochs; crops of 224 from 256 without the mean image, reflections.
# The paper does not state the decay: Krizhevsky's is used.
ZFNET = Recipe(
    batch_size=128, epochs=70, learning_rate=0.01, pixels="centered",
    preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# He et al. 2015 (arXiv:1502.01852), section 3: batch 128, momentum 0.9, decay 5e-4 except for the
# slopes (section 2.1); rate 0.01, divided by 10 twice when the error plateaus; about 80 epochs;
# crops of 224 from a short side of 256 to 512, reflections, the colour shift.
PRELU_NET = Recipe(
    batch_size=128, epochs=80, learning_rate=0.01, no_decay=("*.prelu.weight",),
    preprocessing=Preprocessing(resize_max=512),
)  # fmt: skip

# Crops of random area and aspect ratio, with the colour shift.
RANDOM_AREA = Preprocessing(crop="random_resized")

# Simonyan & Zisserman 2014, section 3.1: batch 256, momentum 0.9, decay 5e-4; rate 0.01, divided by
# 10 when the validation accuracy stopped improving; 74 epochs; crops of 224 from S = 256,
# reflections and the same colour shift.
VGG = Recipe(batch_size=256, epochs=74, learning_rate=0.01)

# He et al. 2015, section 3.4: batch 256; rate 0.1, divided by 10 when the error plateaus; 60 x 10^4
# iterations, decay 1e-4, momentum 0.9; crops of 224 from a short side of 256 to 480, reflections,
# the colour shift.
RESNET = Recipe(
    batch_size=256, epochs=120, learning_rate=0.1, weight_decay=1e-4,
    preprocessing=Preprocessing(resize_max=480),
)  # fmt: skip

# Xie et al. 2016, section 4: batch 256, decay 1e-4; rate 0.1, divided by 10 three times, on the
# schedule of fb.resnet.torch, whose crops of random area and aspect ratio the paper uses too. 100
# epochs are torchvision's.
RESNEXT = Recipe(
    batch_size=256, epochs=100, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(30, 60, 90), preprocessing=RANDOM_AREA,
)  # fmt: skip

# Huang et al. 2016, section 4.2: 90 epochs, batch 256; rate 0.1, divided by 10 at epochs 30 and 60;
# decay 1e-4, Nesterov momentum 0.9, the augmentation of fb.resnet.torch.
DENSENET = Recipe(
    batch_size=256, epochs=90, learning_rate=0.1, weight_decay=1e-4, nesterov=True,
    schedule="multistep", milestones=(30, 60), preprocessing=RANDOM_AREA,
)  # fmt: skip

# Szegedy et al. 2015, section 6: momentum 0.9; the rate falls by 4% every 8 epochs; crops of 8% to
# 100% of the area with aspect ratios of 3/4 to 4/3. Section 5: auxiliary losses weigh 0.3. The
# paper does not state batch, rate and decay: those of Caffe's bvlc_googlenet are used.
GOOGLENET = Recipe(
    batch_size=32, epochs=90, learning_rate=0.01, weight_decay=2e-4, aux_weight=0.3,
    schedule="step", step_epochs=8, factor=0.96, preprocessing=RANDOM_AREA,
)  # fmt: skip

# Ioffe & Szegedy 2015, section 4.2.1: for BN-x5, five times Inception's rate (0.0015), which decays
# six times faster; an L2 penalty five times weaker; batch 32 per worker; less photometric
# distortion.
BN_INCEPTION = Recipe(
    batch_size=32, epochs=30, learning_rate=0.0075, weight_decay=4e-5,
    schedule="step", step_epochs=4 / 3, factor=0.96,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Szegedy et al. 2015 (arXiv:1512.00567), section 8: RMSProp with decay 0.9 and epsilon 1; rate
# 0.045, times 0.94 every two epochs; batch 32 on each of 50 replicas, 100 epochs, gradients clipped
# at 2. Section 7: label smoothing 0.1. Section 4: auxiliary losses weigh 0.3, as in GoogLeNet. Crop
# and resize are torchvision's: 299 from 342. The batch is that of one replica, for one machine.
INCEPTION = Recipe(
    batch_size=32, epochs=100, learning_rate=0.045, optimizer="rmsprop", weight_decay=4e-5,
    clip_norm=2.0, label_smoothing=0.1,
    schedule="step", step_epochs=2, factor=0.94,
    preprocessing=Preprocessing(image_size=299, resize=342, crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Lin et al. 2013, section 4, states the batch for CIFAR (128) and a rate that is divided by 10
# twice. The numbers are those of the authors' Caffe files: batch 64; rate 0.01, divided by 10 every
# 200k of 450k iterations; decay 5e-4; pixels in 0..255 minus their mean.
NIN = Recipe(
    batch_size=64, epochs=22, learning_rate=0.01, schedule="multistep", milestones=(10, 20),
    pixels="centered", preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# Sermanet et al. 2013, section 3.1: batch 128; rate 0.05, halved after 30, 50, 60, 70 and 80
# epochs; momentum 0.6, decay 1e-5; crops of 221 from a short side of 256, and reflections. The fast
# network reads 231 pixels (section 3.3).
OVERFEAT = Recipe(
    batch_size=128, epochs=90, learning_rate=0.05, momentum=0.6, weight_decay=1e-5,
    schedule="multistep", milestones=(30, 50, 60, 70, 80), factor=0.5,
    preprocessing=Preprocessing(image_size=221, pca_std=0.0),
)  # fmt: skip
OVERFEAT_FAST = replace(OVERFEAT, preprocessing=Preprocessing(image_size=231, pca_std=0.0))

# Iandola et al. 2016 (arXiv:1602.07360) refer to the authors' Caffe files: batch 512; rate 0.04,
# which falls linearly to 0 in 170,000 iterations; decay 2e-4.
SQUEEZENET = Recipe(
    batch_size=512, epochs=68, learning_rate=0.04, weight_decay=2e-4, schedule="linear",
    preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# Sandler et al. 2018 (arXiv:1801.04381), section 6.1: RMSProp with decay and momentum 0.9; rate
# 0.045, times 0.98 every epoch; decay 4e-5, batch 96. The number of epochs is torchvision's.
MOBILENET_V2 = Recipe(
    batch_size=96, epochs=300, learning_rate=0.045, optimizer="rmsprop", weight_decay=4e-5,
    schedule="step", step_epochs=1, factor=0.98,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Howard et al. 2019 (arXiv:1905.02244), section 6.1.1: RMSProp with momentum 0.9, batch 4096; rate
# 0.1, which falls by 1% every three epochs; decay 1e-5; average of the weights with decay 0.9999.
# The number of epochs is torchvision's. The epsilon of this recipe and the next two is that of the
# authors' code.
MOBILENET_V3 = replace(
    MOBILENET_V2, batch_size=4096, epochs=600, learning_rate=0.1, weight_decay=1e-5,
    rmsprop_epsilon=1e-3, step_epochs=3, factor=0.99, ema_decay=0.9999,
)  # fmt: skip

# Tan et al. 2018 (arXiv:1807.11626), section 5: RMSProp with decay and momentum 0.9, weight decay
# 1e-5, batch 4096; five epochs of warm-up to the rate 0.256, which is then multiplied by 0.97 every
# 2.4 epochs. 350 epochs are those of the authors' code.
MNASNET = replace(
    MOBILENET_V2, batch_size=4096, epochs=350, learning_rate=0.256, weight_decay=1e-5,
    rmsprop_epsilon=1e-3, step_epochs=2.4, factor=0.97, warmup_epochs=5,
)  # fmt: skip

# Zhang et al. 2017 (arXiv:1707.01083), section 4, whose settings Ma et al. 2018 (arXiv:1807.11164)
# keep: batch 1024, 300,000 iterations; rate 0.5, which falls linearly to 0; decay 4e-5.
SHUFFLENET_V2 = Recipe(
    batch_size=1024, epochs=240, learning_rate=0.5, weight_decay=4e-5, schedule="linear",
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip


EFFICIENTNET_SIZES = {
    "b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600,
    "lite0": 224, "lite1": 240, "lite2": 260,
}  # fmt: skip


def _efficientnet(image_size: int) -> Recipe:
    """Return the recipe of Tan & Le 2019 (arXiv:1905.11946), section 5.2, for an image size.

    It is MnasNet's with AutoAugment. The images of larger networks are larger.
    """
    sizes = {"image_size": image_size, "resize": image_size + 32}
    preprocessing = replace(MNASNET.preprocessing, policy="auto_augment_imagenet", **sizes)
    return replace(MNASNET, preprocessing=preprocessing)


def _efficientnet_v2(train_size: int, image_size: int, magnitude: int, mixup: float) -> Recipe:
    """Return the recipe of Tan & Le 2021 (arXiv:2104.00298), section 5.1.

    It is MnasNet's with an average of the weights, RandAugment and mixup. Sizes and strengths are
    those of the last stage of the paper's progressive learning (Table 6).
    """
    preprocessing = replace(
        MNASNET.preprocessing, policy="rand_augment", policy_magnitude=magnitude,
        train_size=train_size, image_size=image_size, resize=image_size,
    )  # fmt: skip
    return replace(MNASNET, ema_decay=0.9999, mixup=mixup, preprocessing=preprocessing)


# Liu et al. 2022 (arXiv:2201.03545), appendix A.1: batch 4096, 300 epochs; AdamW with rate 0.004
# and a cosine after 20 epochs of warm-up; decay 0.05 (in the authors' code not for norms, biases
# and layer scales); RandAugment of magnitude 9; average of the weights with decay 0.9999.
CONVNEXT = Recipe(
    batch_size=4096, epochs=300, learning_rate=4e-3, optimizer="adamw", weight_decay=0.05,
    decay_norms=False, no_decay=("*.bias", "*.layer_scale"), schedule="cosine", warmup_epochs=20,
    label_smoothing=0.1, random_erasing=0.25, mixup=0.8, cutmix=1.0, ema_decay=0.9999,
    preprocessing=Preprocessing(
        crop="random_resized", interpolation="bicubic", policy="rand_augment", pca_std=0.0
    ),
)  # fmt: skip

# Dosovitskiy et al. 2020 (arXiv:2010.11929), appendix B.1, on ImageNet: batch 4096, 300 epochs;
# Adam with rate 0.003 and a cosine after 10,000 steps of warm-up; decay 0.3, clipping at 1.
VIT = Recipe(
    batch_size=4096, epochs=300, learning_rate=3e-3, optimizer="adamw", weight_decay=0.3,
    schedule="cosine", warmup_epochs=32, clip_norm=1.0,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Liu et al. 2021 (arXiv:2103.14030), section 4.1 and appendix A2.1: batch 1024, 300 epochs; AdamW
# with rate 0.001 and a cosine after 20 epochs of warm-up; decay 0.05, gradients clipped at 1,
# RandAugment, mixup, CutMix, erasing. Version 2 reads 256 pixels (Liu et al. 2022,
# arXiv:2111.09883).
SWIN = Recipe(
    batch_size=1024, epochs=300, learning_rate=1e-3, optimizer="adamw", weight_decay=0.05,
    decay_norms=False, no_decay=("*.bias", "*.relative_position_bias_table"),
    schedule="cosine", warmup_epochs=20, clip_norm=1.0,
    label_smoothing=0.1, random_erasing=0.25, mixup=0.8, cutmix=1.0,
    preprocessing=CONVNEXT.preprocessing,
)  # fmt: skip
SWIN_V2 = replace(
    SWIN, no_decay=("*.bias",),
    preprocessing=replace(SWIN.preprocessing, image_size=256, resize=292),
)  # fmt: skip

# Tu et al. 2022 (arXiv:2204.01697), appendix: batch 4096, 300 epochs; AdamW with rate 0.003 and a
# cosine to 1e-5 after 10,000 steps of warm-up; decay 0.05, gradients clipped at 1, RandAugment of
# magnitude 15, mixup, average of the weights with decay 0.9999.
MAXVIT = Recipe(
    batch_size=4096, epochs=300, learning_rate=3e-3, optimizer="adamw", weight_decay=0.05,
    schedule="cosine", final_rate=1e-5, warmup_epochs=32, clip_norm=1.0,
    label_smoothing=0.1, mixup=0.8, ema_decay=0.9999,
    preprocessing=replace(CONVNEXT.preprocessing, policy_magnitude=15),
)  # fmt: skip


def _enlarged(recipe: Recipe) -> Recipe:
    """Return a recipe of small images for photographs: random crops of a slightly larger image."""
    resize = recipe.preprocessing.image_size * 8 // 7
    return replace(recipe, preprocessing=replace(recipe.preprocessing, resize=resize))


PHOTOGRAPHS = matching(
    *((name, _enlarged(recipe)) for name, recipe in SMALL_IMAGES.items()),
    ("alexnet", ALEXNET),
    ("alexnet_2012", ALEXNET_2012),
    ("vgg*", VGG),
    ("vgg*_bn", BASE),
    ("resnet??", RESNET),
    ("resnet???", RESNET),
    ("plain??", RESNET),
    ("resnext*d", RESNEXT),
    ("wide_resnet*", BASE),
    ("densenet???", DENSENET),
    ("googlenet", GOOGLENET),
    ("bn_inception", BN_INCEPTION),
    ("inception*", INCEPTION),
    ("nin_imagenet", NIN),
    ("zfnet", ZFNET),
    ("prelu_net_*", PRELU_NET),
    ("overfeat_accurate", OVERFEAT),
    ("overfeat_fast", OVERFEAT_FAST),
    ("squeezenet*", SQUEEZENET),
    ("mobilenet_v2", MOBILENET_V2),
    ("mobilenet_v3_*", MOBILENET_V3),
    ("mnasnet*", MNASNET),
    ("shufflenet_v2_*", SHUFFLENET_V2),
    *((f"efficientnet_{name}", _efficientnet(size)) for name, size in EFFICIENTNET_SIZES.items()),
    ("efficientnet_v2_s", _efficientnet_v2(300, 384, 15, 0.0)),
    ("efficientnet_v2_m", _efficientnet_v2(380, 480, 20, 0.2)),
    ("efficientnet_v2_l", _efficientnet_v2(380, 480, 25, 0.5)),
    ("regnet_*", REGNET_SMALL),  # Radosavovic et al. 2020 (arXiv:2003.13678), section 5
    ("convnext_*", CONVNEXT),
    ("vit_*", VIT),
    ("swin_?", SWIN),
    ("swin_v2_?", SWIN_V2),
    ("maxvit_t", MAXVIT),
)
