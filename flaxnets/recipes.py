"""How each network is trained: a row a network, from its paper, else from torchvision's reference.

`recipe_for(arch, small=...)` gives the row, and `experiments/train.py` overrides any value of it.
Photographs and small images (up to 64 pixels: digits, MNIST, CIFAR) have a table each.
"""

from dataclasses import dataclass, field
from typing import Literal

from flaxnets.errors import InputError, one_of
from flaxnets.models import VARIANTS


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes the network's square input."""

    image_size: int = 224
    """Pixels fed to the network."""
    resize: int = 256
    """Pixels of the short side before the crop (photographs)."""
    pad: int = 4
    """Pixels of zeros on each side before the random crop (small images)."""
    flip: bool = True
    """Mirror half of the training images, where that keeps the label."""
    pca_std: float = 0.1
    """Standard deviation of the PCA colour coefficients (RGB images); 0 for none."""

    def __post_init__(self):
        _check_positive(self, "image_size")
        _check_not_negative(self, "pad", "pca_std")
        if self.resize < self.image_size:
            raise InputError(
                f"resize {self.resize} is smaller than the image size {self.image_size} that is "
                f"cropped from it"
            )


@dataclass(frozen=True)
class Recipe:
    """Values of one training run. Rates and decays are those of torch's SGD."""

    batch_size: int
    """Images per step, over all devices."""
    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """Peak learning rate."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or Adam with decoupled weight decay."""
    momentum: float = 0.9
    """Of SGD; Adam's first decay rate."""
    weight_decay: float = 5e-4
    """Added to the gradient as weight_decay * parameter (adamw: to the update)."""
    schedule: Literal["constant", "plateau", "step", "cosine"] = "plateau"
    """Of the rate after warm-up: plateau and step multiply it by factor."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the step schedule multiplies the rate."""
    factor: float = 0.1
    """Of the step and plateau schedules."""
    patience: int = 5
    """Epochs without a smaller validation error before the plateau schedule acts."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises linearly from zero."""
    initialization: Literal["source", "he_normal"] = "source"
    """The network's own, or He et al. 2015 for every kernel (a plain deep stack on few images)."""
    aux_weight: float = 0.3
    """Of the losses of auxiliary classifiers, where the network has them."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self):
        _check_positive(self, "batch_size", "epochs", "learning_rate", "factor", "patience")
        _check_not_negative(self, "momentum", "weight_decay", "warmup_epochs", "aux_weight")


def _check_positive(row, *names: str) -> None:
    for name in names:
        if getattr(row, name) <= 0:
            raise InputError(
                f"{name.replace('_', ' ')} is {getattr(row, name)}; expected a positive number"
            )


def _check_not_negative(row, *names: str) -> None:
    for name in names:
        if getattr(row, name) < 0:
            raise InputError(
                f"{name.replace('_', ' ')} is {getattr(row, name)}; expected zero or more"
            )


# Krizhevsky et al. 2012, section 5: batch 128, momentum 0.9, decay 0.0005, rate 0.01 divided by 10
# "when the validation error rate stopped improving", roughly 90 cycles; section 4.1: 224 of 256,
# reflections, PCA colour with standard deviation 0.1.
ALEXNET = Recipe(batch_size=128, epochs=90, learning_rate=0.01)

# Simonyan & Zisserman 2014, section 3.1: batch 256, momentum 0.9, decay 5e-4, rate 0.01 divided by
# 10 when the validation accuracy stopped improving, 74 epochs; crops of 224 from S = 256,
# reflections and the same colour shift.
VGG = Recipe(batch_size=256, epochs=74, learning_rate=0.01)

# torchvision references/classification/README.md: the VGG-BN networks take the base recipe.
VGG_BN = Recipe(
    batch_size=256, epochs=90, learning_rate=0.1, weight_decay=1e-4,
    schedule="step", milestones=(30, 60), preprocessing=Preprocessing(pca_std=0.0),
)  # fmt: skip

# The lecture gives LeNet-5 no recipe; plain SGD suits its 44,426 parameters.
LENET = Recipe(
    batch_size=64, epochs=20, learning_rate=0.02, schedule="cosine",
    preprocessing=Preprocessing(image_size=28, resize=32, pad=2),
)  # fmt: skip

PHOTOGRAPHS = {
    "lenet5": LENET,
    "alexnet": ALEXNET,
    "alexnet_2012": ALEXNET,
    "vgg11": VGG,
    "vgg13": VGG,
    "vgg16": VGG,
    "vgg19": VGG,
    "vgg11_bn": VGG_BN,
    "vgg13_bn": VGG_BN,
    "vgg16_bn": VGG_BN,
    "vgg19_bn": VGG_BN,
}
# A plain deep stack on few small images: N(0, 0.01) leaves the loss at 2.30, and SGD is caught by
# the 7x7 pool, which repeats a 1x1 map 49 times and so multiplies the first linear layer's rate.
VGG_SMALL = Recipe(
    batch_size=64, epochs=8, learning_rate=1e-4, optimizer="adamw", schedule="cosine",
    warmup_epochs=1, initialization="he_normal",
    preprocessing=Preprocessing(image_size=32, resize=32, pad=2),
)  # fmt: skip

SMALL_IMAGES = {
    "lenet5": LENET,
    **dict.fromkeys([name for name in PHOTOGRAPHS if name.startswith("vgg")], VGG_SMALL),
}


def recipe_for(arch: str, *, small: bool) -> Recipe:
    """The row of `arch` for photographs, or for small images.

    Raises InputError for an unknown architecture.
    """
    table = SMALL_IMAGES if small else PHOTOGRAPHS
    return table[one_of(VARIANTS, arch, "architecture")]
