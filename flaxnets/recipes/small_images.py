"""Recipes for small images (up to 64 pixels: digits, MNIST, CIFAR), from each network's paper.

A comment before each recipe names its source and the values that the source states. A network
whose paper has no small images gets a short recipe of our own (`SHORT`).
"""

from dataclasses import replace

from flaxnets.recipes.recipe import Preprocessing, Recipe, matching


def padded(image_size: int, pad: int = 4) -> Preprocessing:
    """Return the augmentation of CIFAR: pad, crop and mirror, without changes of colour."""
    return Preprocessing(image_size=image_size, resize=image_size, pad=pad, pca_std=0.0)


# The lecture gives LeNet-5 no recipe. Plain SGD suits its 44,426 parameters.
LENET = Recipe(
    batch_size=64, epochs=20, learning_rate=0.05, schedule="cosine",
    preprocessing=padded(28, pad=2),
)  # fmt: skip

# LeCun et al. 1998, section III.B: 20 passes, image by image; rates from 5e-4 down to 1e-5, divided
# by a second derivative of each weight. Here the images come in batches, hence another rate. The
# paper centres digits of 28 pixels in a field of 32; here they are enlarged to 32. The codes of the
# output are fixed (section II.B).
LENET_1998 = Recipe(
    batch_size=64, epochs=20, learning_rate=0.005, schedule="cosine", weight_decay=0.0,
    freeze=("classifier.4.*",), preprocessing=padded(32, pad=2),
)  # fmt: skip

# cuda-convnet's layer-params files, Krizhevsky 2012: batch 128, momentum 0.9; rate 0.001 (0.002 for
# biases), divided by 10 after 120 and 130 epochs of 140; decay 0.004 (1 for the last layer). The
# larger network: after 450 and 460 of 470 epochs, no decay of the convolutions, and crops of 24
# pixels with reflections. Here the images are resized to 24 and shifted instead.
ALEXNET_CIFAR = Recipe(
    batch_size=128, epochs=140, learning_rate=0.001, weight_decay=0.004, pixels="centered",
    schedule="multistep", milestones=(120, 130), rate_factors=(("*.bias", 2.0),),
    no_decay=("*.bias",), decay_factors=(("fc10.weight", 1 / 0.004),),
    preprocessing=replace(padded(32, pad=0), flip="none"),
)  # fmt: skip
ALEXNET_CIFAR_LOCAL = replace(
    ALEXNET_CIFAR, epochs=470, milestones=(450, 460), decay_factors=(),
    no_decay=("*.bias", "features.0.*", "features.4.*"), preprocessing=padded(24, pad=3),
)  # fmt: skip

# A plain deep stack on few small images. With weights from N(0, 0.01) the loss stays at 2.30. SGD
# fails at the 7x7 pool: it repeats a 1x1 map 49 times, which multiplies the rate of the first
# linear layer. Adam's mean of the gradients decays by 0.8 instead of 0.9: VGG-19 on the digits then
# ends at 97.75% to 98.87% (seeds 0 to 9), while 0.9 gave 96.90% for one seed of four.
VGG_SMALL = Recipe(
    batch_size=64, epochs=6, learning_rate=1e-4, optimizer="adamw", momentum=0.8,
    schedule="cosine", warmup_epochs=1, initialization="he_normal", preprocessing=padded(32, pad=2),
)  # fmt: skip

# He et al. 2015, section 4.2: batch 128; rate 0.1, divided by 10 at 32k and 48k of 64k iterations
# (391 per epoch); decay 1e-4; 4 pixels of padding, crops of 32, reflections.
RESNET_CIFAR = Recipe(
    batch_size=128, epochs=164, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(82, 123), preprocessing=padded(32),
)  # fmt: skip
# Networks of 110 layers and more warm up first. He et al. 2016, appendix: the same recipe with the
# first 400 iterations at 0.01.
RESNET_CIFAR_DEEP = replace(RESNET_CIFAR, warmup_epochs=1.0)

# Xie et al. 2016, section 5.3 and appendix A: batch 128; rate 0.1, divided by 10 at epochs 150 and
# 225 of 300; decay 5e-4.
RESNEXT_CIFAR = Recipe(
    batch_size=128, epochs=300, learning_rate=0.1,
    schedule="multistep", milestones=(150, 225), preprocessing=padded(32),
)  # fmt: skip

# Zagoruyko & Komodakis 2016, section 3: batch 128, Nesterov momentum; rate 0.1, times 0.2 at epochs
# 60, 120 and 160 of 200; decay 5e-4.
WRN = Recipe(
    batch_size=128, epochs=200, learning_rate=0.1, nesterov=True, factor=0.2,
    schedule="multistep", milestones=(60, 120, 160), preprocessing=padded(32),
)  # fmt: skip

# Huang et al. 2016, section 4.2: batch 64, 300 epochs; rate 0.1, divided by 10 at 50% and 75%.
DENSENET_CIFAR = Recipe(
    batch_size=64, epochs=300, learning_rate=0.1, weight_decay=1e-4, nesterov=True,
    schedule="multistep", milestones=(150, 225), preprocessing=padded(32),
)  # fmt: skip

# Srivastava et al. 2015 state no values; the authors' Caffe files do. CIFAR: Nesterov momentum 0.9,
# batch 100; rate 0.025, divided by 10 at 100k, 150k and 175k of 200k iterations (500 per epoch);
# decay 1e-3, 8 pixels of padding. MNIST: rate 0.01, divided by 10 at 60k and 120k of 180k
# iterations (600 per epoch).
HIGHWAY = Recipe(
    batch_size=100, epochs=400, learning_rate=0.025, weight_decay=1e-3, nesterov=True,
    schedule="multistep", milestones=(200, 300, 350), preprocessing=padded(32, pad=8),
)  # fmt: skip
HIGHWAY_MLP = replace(
    HIGHWAY, epochs=300, learning_rate=0.01, milestones=(100, 200), preprocessing=padded(28, pad=2)
)
# The authors' Caffe files for Lin et al. 2013: batch 128; rate 0.1, divided by 10 at 100k of 120k
# iterations; the last layer's rate is a tenth of it. Their images are whitened (Goodfellow et al.
# 2013), ours standardised.
NIN_CIFAR = Recipe(
    batch_size=128, epochs=307, learning_rate=0.1, weight_decay=1e-4,
    schedule="multistep", milestones=(256,), rate_factors=(("mlpconv3.cccp2.*", 0.1),),
    preprocessing=padded(32),
)  # fmt: skip

# Jordan 2024 and its successor with Muon (airbench94_muon.py): batch 2000, 8 epochs, rates that
# fall linearly to zero, smoothing 0.2, translation by 2 pixels of the reflected image. Its loss is
# the sum over the batch of 2000, ours the mean. So our rates of SGD are 2000 times theirs (0.053
# for biases, 0.67 for the head), and our decays a 2000th (0.004 divided by the rate). There the
# first bias is trained for three epochs only.
AIRBENCH = Recipe(
    batch_size=2000, epochs=8, optimizer="muon", learning_rate=0.24, schedule="linear",
    muon_momentum=0.6, muon_keys=("layers.*",), momentum=0.85, nesterov=True,
    rate_factors=(("*.bias", 2000 * 0.053 / 0.24), ("head.weight", 2000 * 0.67 / 0.24),
                  ("layers.*.norm?.weight", 0.0)),
    weight_decay=0.004 / 0.053 / 2000, no_decay=("layers.*.weight",),
    decay_factors=(("head.weight", 0.053 / 0.67),),
    whiten="whiten.weight", freeze=("whiten.weight",), label_smoothing=0.2,
    views="mirror-and-shift",
    preprocessing=replace(padded(32, pad=2), padding="reflect", flip="alternating"),
)  # fmt: skip

# Ciresan et al. 2012, section 3: stochastic gradient descent, image by image; rate 0.001, times
# 0.993 every epoch, down to 0.00003. Here the images come in batches, hence a larger rate.
MCDNN = Recipe(
    batch_size=32, epochs=60, learning_rate=0.02, momentum=0.0, weight_decay=0.0,
    schedule="step", step_epochs=1, factor=0.993, preprocessing=padded(29, pad=2),
)  # fmt: skip

# The networks of a first course read images without augmentation.
PERCEPTRON = Recipe(
    batch_size=64, epochs=30, learning_rate=0.1, weight_decay=1e-4, schedule="cosine",
    preprocessing=padded(8, pad=0),
)  # fmt: skip
# Squared error is quadratic in the weights: the largest eigenvalue of the features' second moments
# bounds the rate. It is about 30 for the digits.
LINEAR_REGRESSION = replace(
    PERCEPTRON, learning_rate=0.002, epochs=100, weight_decay=0.0, loss="squared_error"
)

# A short cosine, for networks whose papers say nothing about small images.
SHORT = Recipe(
    batch_size=64, epochs=30, learning_rate=0.02, schedule="cosine", warmup_epochs=1.0,
    preprocessing=padded(32),
)  # fmt: skip


def _short(image_size: int) -> Recipe:
    return replace(SHORT, preprocessing=padded(image_size))


SMALL_IMAGES = matching(
    ("*", SHORT),
    ("alexnet", _short(64)),
    ("alexnet_2012", replace(_short(224), pixels="centered")),
    ("alexnet_cifar", ALEXNET_CIFAR),
    ("alexnet_cifar_local", ALEXNET_CIFAR_LOCAL),
    ("zfnet", replace(_short(224), pixels="centered")),
    ("prelu_net_*", replace(SHORT, no_decay=("*.prelu.weight",))),
    ("overfeat_accurate", _short(221)),
    ("overfeat_fast", _short(231)),
    ("nin_imagenet", _short(96)),
    ("inception*", _short(96)),
    ("vit_h_14", _short(28)),
    ("maxvit_t", _short(224)),
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
