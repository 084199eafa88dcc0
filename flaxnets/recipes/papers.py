"""The recipe of each network's paper; where that says nothing, torchvision's base recipe or, for
small images, a short one. A row's comment says where its values stand.
"""

from dataclasses import replace

from flaxnets.recipes.recipe import Kind, Preprocessing, Recipe, matching
from flaxnets.recipes.torchvision import BASE, REGNET_SMALL


def _small(image_size: int, pad: int = 4) -> Preprocessing:
    """Pad, crop and mirror, as for CIFAR; no colour."""
    return Preprocessing(image_size=image_size, resize=image_size, pad=pad, pca_std=0.0)


# ------------------------------------------------------------------------------- photographs

# Krizhevsky et al. 2012, section 5: batch 128, momentum 0.9, decay 0.0005, rate 0.01 divided by 10
# "when the validation error rate stopped improving", roughly 90 cycles; section 4.1: 224 of 256,
# reflections, PCA colour with standard deviation 0.1. Section 2: "centered raw RGB values", for
# which its small initial weights are made; torchvision's network takes standardised ones.
ALEXNET = Recipe(batch_size=128, epochs=90, learning_rate=0.01)
ALEXNET_2012 = replace(ALEXNET, pixels="centered")

# Zeiler & Fergus 2013, section 3: batch 128, momentum 0.9, rate 0.01 "annealed manually when the
# validation error plateaus", 70 epochs; crops of 224 from 256 less the mean image, reflections. The
# decay is not stated: Krizhevsky's.
ZFNET = Recipe(
    batch_size=128, epochs=70, learning_rate=0.01, pixels="centered",
    preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# He et al. 2015 (arXiv:1502.01852), section 3: batch 128, momentum 0.9, decay 5e-4 but for the
# slopes (section 2.1), rate 0.01 divided by 10 twice when the error plateaus, about 80 epochs;
# crops of 224 from a short side of 256 to 512, reflections, the colour shift.
PRELU_NET = Recipe(
    batch_size=128, epochs=80, learning_rate=0.01, no_decay=("*.prelu.weight",),
    preprocessing=Preprocessing(resize_max=512),
)  # fmt: skip

# Crops of any size and shape, with the colour shift.
ANY_WINDOW = Preprocessing(crop="random_resized")

# Simonyan & Zisserman 2014, section 3.1: batch 256, momentum 0.9, decay 5e-4, rate 0.01 divided by
# 10 when the validation accuracy stopped improving, 74 epochs; crops of 224 from S = 256,
# reflections and the same colour shift.
VGG = Recipe(batch_size=256, epochs=74, learning_rate=0.01)

# He et al. 2015, section 3.4: batch 256, rate 0.1 divided by 10 when the error plateaus, 60 x 10^4
# iterations, decay 1e-4, momentum 0.9; crops of 224 from a short side of 256 to 480, reflections,
# the colour shift.
RESNET = Recipe(
    batch_size=256, epochs=120, learning_rate=0.1, weight_decay=1e-4,
    preprocessing=Preprocessing(resize_max=480),
)  # fmt: skip

# Xie et al. 2016, section 4: batch 256, decay 1e-4, rate 0.1 divided by 10 three times, on the
# schedule of fb.resnet.torch, whose crops of any size and shape they take; torchvision trains 100
# epochs.
RESNEXT = Recipe(
    batch_size=256, epochs=100, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(30, 60, 90), preprocessing=ANY_WINDOW,
)  # fmt: skip

# Huang et al. 2016, section 4.2: 90 epochs, batch 256, rate 0.1 divided by 10 at epochs 30 and 60,
# decay 1e-4, Nesterov momentum 0.9, the augmentation of fb.resnet.torch.
DENSENET = Recipe(
    batch_size=256, epochs=90, learning_rate=0.1, weight_decay=1e-4, nesterov=True,
    schedule="multistep", milestones=(30, 60), preprocessing=ANY_WINDOW,
)  # fmt: skip

# Szegedy et al. 2015, section 6: momentum 0.9, rate down by 4% every 8 epochs, crops of 8% to 100%
# of the area and aspect ratios of 3/4 to 4/3; section 5: auxiliary losses weigh 0.3. Batch, rate
# and decay are not stated: those of Caffe's bvlc_googlenet.
GOOGLENET = Recipe(
    batch_size=32, epochs=90, learning_rate=0.01, weight_decay=2e-4, aux_weight=0.3,
    schedule="step", step_epochs=8, factor=0.96, preprocessing=ANY_WINDOW,
)  # fmt: skip

# Ioffe & Szegedy 2015, section 4.2.1: five times Inception's rate (0.0015) for BN-x5, decay of the
# rate six times faster, L2 five times weaker, batch 32 a worker, little photometric distortion.
BN_INCEPTION = Recipe(
    batch_size=32, epochs=30, learning_rate=0.0075, weight_decay=4e-5,
    schedule="step", step_epochs=4 / 3, factor=0.96,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Szegedy et al. 2015 (arXiv:1512.00567), section 8: RMSProp with decay 0.9 and epsilon 1, rate
# 0.045 times 0.94 every two epochs, batch 32 on each of 50 replicas, 100 epochs, gradients clipped
# at 2; section 7: label smoothing 0.1; section 4: auxiliary losses weigh 0.3, as before.
# torchvision's crop and resize: 299 of 342. For one machine the batch is that of one replica.
INCEPTION = Recipe(
    batch_size=32, epochs=100, learning_rate=0.045, optimizer="rmsprop", weight_decay=4e-5,
    clip_norm=2.0, label_smoothing=0.1,
    schedule="step", step_epochs=2, factor=0.94,
    preprocessing=Preprocessing(image_size=299, resize=342, crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Lin et al. 2013, section 4, gives the batch for CIFAR (128) and a rate divided by 10 twice; the
# numbers are the authors' Caffe files': batch 64, rate 0.01 divided by 10 every 200k of 450k
# iterations, decay 5e-4, pixels in 0..255 less their mean.
NIN = Recipe(
    batch_size=64, epochs=22, learning_rate=0.01, schedule="multistep", milestones=(10, 20),
    pixels="centered", preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# Sermanet et al. 2013, section 3.1: batch 128, rate 0.05 halved after 30, 50, 60, 70 and 80 epochs,
# momentum 0.6, decay 1e-5; crops of 221 from a short side of 256 and reflections. The fast network
# takes 231 pixels (section 3.3).
OVERFEAT = Recipe(
    batch_size=128, epochs=90, learning_rate=0.05, momentum=0.6, weight_decay=1e-5,
    schedule="multistep", milestones=(30, 50, 60, 70, 80), factor=0.5,
    preprocessing=Preprocessing(image_size=221, pca_std=0.0),
)  # fmt: skip
OVERFEAT_FAST = replace(OVERFEAT, preprocessing=Preprocessing(image_size=231, pca_std=0.0))

# Iandola et al. 2016 (arXiv:1602.07360) leave it to the authors' Caffe files: batch 512, rate 0.04
# that falls linearly to 0 in 170,000 iterations, decay 2e-4.
SQUEEZENET = Recipe(
    batch_size=512, epochs=68, learning_rate=0.04, weight_decay=2e-4, schedule="linear",
    preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# Sandler et al. 2018 (arXiv:1801.04381), section 6.1: RMSProp with decay and momentum 0.9, rate
# 0.045 times 0.98 an epoch, decay 4e-5, batch 96. Epochs are torchvision's.
MOBILENET_V2 = Recipe(
    batch_size=96, epochs=300, learning_rate=0.045, optimizer="rmsprop", weight_decay=4e-5,
    schedule="step", step_epochs=1, factor=0.98,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Howard et al. 2019 (arXiv:1905.02244), section 6.1.1: RMSProp with momentum 0.9, batch 4096, rate
# 0.1 that loses 1% every three epochs, decay 1e-5, average of the weights with decay 0.9999.
# Epochs are torchvision's; the epsilon here and in the next two is that of the authors' code.
MOBILENET_V3 = replace(
    MOBILENET_V2, batch_size=4096, epochs=600, learning_rate=0.1, weight_decay=1e-5,
    rmsprop_epsilon=1e-3, step_epochs=3, factor=0.99, ema_decay=0.9999,
)  # fmt: skip

# Tan et al. 2018 (arXiv:1807.11626), section 5: RMSProp with decay and momentum 0.9, decay 1e-5,
# batch 4096, five epochs of warm-up to the rate 0.256, which is multiplied by 0.97 every 2.4
# epochs. 350 epochs are the authors' code's.
MNASNET = replace(
    MOBILENET_V2, batch_size=4096, epochs=350, learning_rate=0.256, weight_decay=1e-5,
    rmsprop_epsilon=1e-3, step_epochs=2.4, factor=0.97, warmup_epochs=5,
)  # fmt: skip

# Zhang et al. 2017 (arXiv:1707.01083), section 4, whose settings Ma et al. 2018 (arXiv:1807.11164)
# keep: batch 1024, 300,000 iterations, rate 0.5 that falls linearly to 0, decay 4e-5.
SHUFFLENET_V2 = Recipe(
    batch_size=1024, epochs=240, learning_rate=0.5, weight_decay=4e-5, schedule="linear",
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip


EFFICIENTNET_SIZES = {
    "b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600,
    "lite0": 224, "lite1": 240, "lite2": 260,
}  # fmt: skip


def _efficientnet(image_size: int) -> Recipe:
    """Return the recipe of Tan & Le 2019 (arXiv:1905.11946), section 5.2: as MnasNet, with
    AutoAugment, and images whose size grows with the network.
    """
    sizes = {"image_size": image_size, "resize": image_size + 32}
    preprocessing = replace(MNASNET.preprocessing, policy="auto_augment_imagenet", **sizes)
    return replace(MNASNET, preprocessing=preprocessing)


def _efficientnet_v2(train_size: int, image_size: int, magnitude: int, mixup: float) -> Recipe:
    """Return the recipe of Tan & Le 2021 (arXiv:2104.00298), section 5.1: as MnasNet, with an
    average of the weights, RandAugment and mixup, of the sizes and strengths of the last stage of
    their progressive learning (Table 6).
    """
    preprocessing = replace(
        MNASNET.preprocessing, policy="rand_augment", policy_magnitude=magnitude,
        train_size=train_size, image_size=image_size, resize=image_size,
    )  # fmt: skip
    return replace(MNASNET, ema_decay=0.9999, mixup=mixup, preprocessing=preprocessing)


# Liu et al. 2022 (arXiv:2201.03545), appendix A.1: batch 4096, 300 epochs, AdamW with rate 0.004
# and a cosine after 20 epochs of warm-up, decay 0.05 (in the authors' code not of norms, biases and
# layer scales), RandAugment of magnitude 9, average of the weights with decay 0.9999.
CONVNEXT = Recipe(
    batch_size=4096, epochs=300, learning_rate=4e-3, optimizer="adamw", weight_decay=0.05,
    decay_norms=False, no_decay=("*.bias", "*.layer_scale"), schedule="cosine", warmup_epochs=20,
    label_smoothing=0.1, random_erasing=0.25, mixup=0.8, cutmix=1.0, ema_decay=0.9999,
    preprocessing=Preprocessing(
        crop="random_resized", interpolation="bicubic", policy="rand_augment", pca_std=0.0
    ),
)  # fmt: skip

# Dosovitskiy et al. 2020 (arXiv:2010.11929), appendix B.1, on ImageNet: batch 4096, 300 epochs,
# Adam with rate 0.003 and a cosine after 10,000 steps of warm-up, decay 0.3, clipping at 1.
VIT = Recipe(
    batch_size=4096, epochs=300, learning_rate=3e-3, optimizer="adamw", weight_decay=0.3,
    schedule="cosine", warmup_epochs=32, clip_norm=1.0,
    preprocessing=Preprocessing(crop="random_resized", pca_std=0.0),
)  # fmt: skip

# Liu et al. 2021 (arXiv:2103.14030), section 4.1 and appendix A2.1: batch 1024, 300 epochs, AdamW
# with rate 0.001 and a cosine after 20 epochs of warm-up, decay 0.05, gradients clipped at 1,
# RandAugment, mixup, CutMix, erasing. Liu et al. 2022 (arXiv:2111.09883) read 256 pixels.
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

# Tu et al. 2022 (arXiv:2204.01697), appendix: batch 4096, 300 epochs, AdamW with rate 0.003 and a
# cosine to 1e-5 after 10,000 steps of warm-up, decay 0.05, gradients clipped at 1, RandAugment of
# magnitude 15, mixup, average of the weights with decay 0.9999.
MAXVIT = Recipe(
    batch_size=4096, epochs=300, learning_rate=3e-3, optimizer="adamw", weight_decay=0.05,
    schedule="cosine", final_rate=1e-5, warmup_epochs=32, clip_norm=1.0,
    label_smoothing=0.1, mixup=0.8, ema_decay=0.9999,
    preprocessing=replace(CONVNEXT.preprocessing, policy_magnitude=15),
)  # fmt: skip

# ------------------------------------------------------------------------------- small images

# The lecture gives LeNet-5 no recipe; plain SGD suits its 44,426 parameters.
LENET = Recipe(
    batch_size=64, epochs=20, learning_rate=0.05, schedule="cosine", preprocessing=_small(28, pad=2)
)

# LeCun et al. 1998, section III.B: 20 passes, image by image, whose rates of 5e-4 down to 1e-5 are
# divided by a second derivative of each weight; here in batches, hence another rate. The codes of
# the output stay fixed (section II.B).
LENET_1998 = Recipe(
    batch_size=64, epochs=20, learning_rate=0.005, schedule="cosine", weight_decay=0.0,
    freeze=("classifier.4.*",), preprocessing=_small(32, pad=2),
)  # fmt: skip

# cuda-convnet's layer-params files, Krizhevsky 2012: batch 128, momentum 0.9, rate 0.001 (of biases
# 0.002) divided by 10 after 120 and 130 epochs of 140, decay 0.004 (of the last layer 1). For the
# larger network after 450 and 460 of 470, without decay of the convolutions, and crops of 24 pixels
# with reflections: here the images are resized to 24 and shifted.
ALEXNET_CIFAR = Recipe(
    batch_size=128, epochs=140, learning_rate=0.001, weight_decay=0.004, pixels="centered",
    schedule="multistep", milestones=(120, 130), rate_factors=(("*.bias", 2.0),),
    no_decay=("*.bias",), decay_factors=(("fc10.weight", 1 / 0.004),),
    preprocessing=replace(_small(32, pad=0), flip="none"),
)  # fmt: skip
ALEXNET_CIFAR_LOCAL = replace(
    ALEXNET_CIFAR, epochs=470, milestones=(450, 460), decay_factors=(),
    no_decay=("*.bias", "features.0.*", "features.4.*"), preprocessing=_small(24, pad=3),
)  # fmt: skip

# A plain deep stack on few small images: N(0, 0.01) leaves the loss at 2.30, and SGD is caught by
# the 7x7 pool, which repeats a 1x1 map 49 times and so multiplies the first linear layer's rate.
# Adam's mean of the gradients decays by 0.8, not 0.9: VGG-19 on the digits then ends at 97.75% to
# 98.87% (seeds 0 to 9), where 0.9 gave 96.90% for one seed of four.
VGG_SMALL = Recipe(
    batch_size=64, epochs=6, learning_rate=1e-4, optimizer="adamw", momentum=0.8,
    schedule="cosine", warmup_epochs=1, initialization="he_normal", preprocessing=_small(32, pad=2),
)  # fmt: skip

# He et al. 2015, section 4.2: batch 128, rate 0.1 divided by 10 at 32k and 48k of 64k iterations
# (391 an epoch), decay 1e-4; 4 pixels of padding, crop 32, reflections. The 110-layer network and
# its like warm up first.
RESNET_CIFAR = Recipe(
    batch_size=128, epochs=164, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(82, 123), preprocessing=_small(32),
)  # fmt: skip
# He et al. 2016, appendix: the same, and the first 400 iterations at 0.01.
RESNET_CIFAR_DEEP = replace(RESNET_CIFAR, warmup_epochs=1.0)

# Xie et al. 2016, section 5.3 and appendix A: batch 128, rate 0.1 divided by 10 at epochs 150 and
# 225 of 300, decay 5e-4.
RESNEXT_CIFAR = Recipe(
    batch_size=128, epochs=300, learning_rate=0.1,
    schedule="multistep", milestones=(150, 225), preprocessing=_small(32),
)  # fmt: skip

# Zagoruyko & Komodakis 2016, section 3: batch 128, Nesterov momentum, rate 0.1 times 0.2 at epochs
# 60, 120 and 160 of 200, decay 5e-4.
WRN = Recipe(
    batch_size=128, epochs=200, learning_rate=0.1, nesterov=True, factor=0.2,
    schedule="multistep", milestones=(60, 120, 160), preprocessing=_small(32),
)  # fmt: skip

# Huang et al. 2016, section 4.2: batch 64, 300 epochs, rate 0.1 divided by 10 at 50% and 75%.
DENSENET_CIFAR = Recipe(
    batch_size=64, epochs=300, learning_rate=0.1, weight_decay=1e-4, nesterov=True,
    schedule="multistep", milestones=(150, 225), preprocessing=_small(32),
)  # fmt: skip

# Srivastava et al. 2015 state no values; the authors' Caffe files do. CIFAR: Nesterov 0.9, batch
# 100, rate 0.025 divided by 10 at 100k, 150k and 175k of 200k iterations (500 an epoch), decay
# 1e-3, 8 pixels of padding. MNIST: rate 0.01 divided by 10 at 60k and 120k of 180k (600 an epoch).
HIGHWAY = Recipe(
    batch_size=100, epochs=400, learning_rate=0.025, weight_decay=1e-3, nesterov=True,
    schedule="multistep", milestones=(200, 300, 350), preprocessing=_small(32, pad=8),
)  # fmt: skip
HIGHWAY_MLP = replace(
    HIGHWAY, epochs=300, learning_rate=0.01, milestones=(100, 200), preprocessing=_small(28, pad=2)
)
# The authors' Caffe files: batch 128, rate 0.1 divided by 10 at 100k of 120k iterations, the last
# layer's a tenth of it. Their images are whitened (Goodfellow et al. 2013), ours standardised.
NIN_CIFAR = Recipe(
    batch_size=128, epochs=307, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(256,), rate_factors=(("mlpconv3.cccp2.*", 0.1),),
    preprocessing=_small(32),
)  # fmt: skip

# Jordan 2024 and its successor that Muon trains (airbench94_muon.py): batch 2000, 8 epochs, rates
# that fall linearly to zero, smoothing 0.2, translation by 2 pixels of the reflected image. Its
# loss is the sum over the batch, so the rates of SGD, 0.053 for biases and 0.67 for the head, are
# 2000 times those, and the decays, 0.004 over the rate, a 2000th. There the first bias stops after
# three epochs.
AIRBENCH = Recipe(
    batch_size=2000, epochs=8, optimizer="muon", learning_rate=0.24, schedule="linear",
    muon_momentum=0.6, muon_keys=("layers.*",), momentum=0.85, nesterov=True,
    rate_factors=(("*.bias", 2000 * 0.053 / 0.24), ("head.weight", 2000 * 0.67 / 0.24),
                  ("layers.*.norm?.weight", 0.0)),
    weight_decay=0.004 / 0.053 / 2000, no_decay=("layers.*.weight",),
    decay_factors=(("head.weight", 0.053 / 0.67),),
    whiten="whiten.weight", freeze=("whiten.weight",), label_smoothing=0.2,
    views="mirror-and-shift",
    preprocessing=replace(_small(32, pad=2), padding="reflect", flip="alternating"),
)  # fmt: skip

# Ciresan et al. 2012, section 3: stochastic gradient descent image by image, rate 0.001 times 0.993
# an epoch down to 0.00003; here in batches, hence a larger rate.
MCDNN = Recipe(
    batch_size=32, epochs=60, learning_rate=0.02, momentum=0.0, weight_decay=0.0,
    schedule="step", step_epochs=1, factor=0.993, preprocessing=_small(29, pad=2),
)  # fmt: skip

# A first course: images as they are, or rows.
PERCEPTRON = Recipe(
    batch_size=64, epochs=30, learning_rate=0.1, weight_decay=1e-4, schedule="cosine",
    preprocessing=_small(8, pad=0),
)  # fmt: skip
# Squared error is quadratic in the weights: the largest eigenvalue of the features' second moments
# bounds the rate (about 30 for the digits; 4 and 13 for the standardised rows of the diabetes and
# the breast cancer data).
LINEAR_REGRESSION = replace(
    PERCEPTRON, learning_rate=0.002, epochs=100, weight_decay=0.0, loss="squared_error"
)
LINEAR_REGRESSION_ON_ROWS = replace(LINEAR_REGRESSION, learning_rate=0.02, epochs=200)

# A network for photographs on small images, where its paper says nothing: a short cosine.
ON_SMALL = Recipe(
    batch_size=64, epochs=30, learning_rate=0.02, schedule="cosine", warmup_epochs=1.0,
    preprocessing=_small(32),
)  # fmt: skip


def _at(recipe: Recipe, image_size: int) -> Recipe:
    return replace(recipe, preprocessing=_small(image_size))


def _of_photographs(recipe: Recipe) -> Recipe:
    """A row for small images on photographs: crops of that size from a little more."""
    size = recipe.preprocessing.image_size
    how = replace(recipe.preprocessing, resize=size * 8 // 7)
    return replace(recipe, preprocessing=how)


def _of_rows(recipe: Recipe) -> Recipe:
    """A row for small images on rows of features, which are fed as they are."""
    how = Preprocessing(image_size=1, resize=1, pad=0, flip="none", pca_std=0.0)
    return replace(recipe, preprocessing=how)


FOR_SMALL_IMAGES = matching(
    ("*", ON_SMALL),
    ("alexnet", _at(ON_SMALL, 64)),
    ("alexnet_2012", replace(_at(ON_SMALL, 224), pixels="centered")),
    ("alexnet_cifar", ALEXNET_CIFAR),
    ("alexnet_cifar_local", ALEXNET_CIFAR_LOCAL),
    ("zfnet", replace(_at(ON_SMALL, 224), pixels="centered")),
    ("prelu_net_*", replace(ON_SMALL, no_decay=PRELU_NET.no_decay)),
    ("overfeat_accurate", _at(ON_SMALL, 221)),
    ("overfeat_fast", _at(ON_SMALL, 231)),
    ("nin_imagenet", _at(ON_SMALL, 96)),
    ("inception*", _at(ON_SMALL, 96)),
    ("vit_h_14", _at(ON_SMALL, 28)),
    ("maxvit_t", _at(ON_SMALL, 224)),
    ("lenet5", LENET),
    ("lenet5_1998", LENET_1998),
    ("vgg*", VGG_SMALL),
    ("resnet*_cifar", RESNET_CIFAR),
    ("plain*_cifar", RESNET_CIFAR),
    ("resnet110_cifar", RESNET_CIFAR_DEEP),
    ("resnet1202_cifar", RESNET_CIFAR_DEEP),
    ("preact_resnet*_cifar", RESNET_CIFAR_DEEP),
    ("resnext*_cifar", RESNEXT_CIFAR),
    ("wrn_*", WRN),
    ("densenet_*", DENSENET_CIFAR),
    ("nin_cifar", NIN_CIFAR),
    ("highway*_cifar", HIGHWAY),
    ("highway_mlp", HIGHWAY_MLP),
    ("plain_mlp", HIGHWAY_MLP),
    ("airbench94", AIRBENCH),
    ("mcdnn_mnist", MCDNN),
    ("softmax_regression", PERCEPTRON),
    ("perceptron", PERCEPTRON),
    ("mlp", PERCEPTRON),
    ("linear_regression", LINEAR_REGRESSION),
)
FOR_PHOTOGRAPHS = matching(
    *((name, _of_photographs(recipe)) for name, recipe in FOR_SMALL_IMAGES.items()),
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
    # Radosavovic et al. 2020 (arXiv:2003.13678), section 5, as torchvision's
    ("regnet_*", REGNET_SMALL),
    ("convnext_*", CONVNEXT),
    ("vit_*", VIT),
    ("swin_?", SWIN),
    ("swin_v2_?", SWIN_V2),
    ("maxvit_t", MAXVIT),
)
FOR_ROWS = matching(
    ("softmax_regression", _of_rows(PERCEPTRON)),
    ("perceptron", _of_rows(PERCEPTRON)),
    ("mlp", _of_rows(PERCEPTRON)),
    ("linear_regression", _of_rows(LINEAR_REGRESSION_ON_ROWS)),
)
PAPERS: dict[Kind, dict[str, Recipe]] = {
    "photographs": FOR_PHOTOGRAPHS,
    "small images": FOR_SMALL_IMAGES,
    "rows": FOR_ROWS,
}
