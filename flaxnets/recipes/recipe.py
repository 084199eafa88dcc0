"""The fields of a recipe: the values of a training run and of its preprocessing."""

import fnmatch
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from flaxnets.errors import InputError
from flaxnets.models import NAMES

Kind: TypeAlias = Literal["photographs", "small images", "rows"]
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # means, deviations
Loss: TypeAlias = Literal["cross_entropy", "squared_error"]
Schedule: TypeAlias = Literal[
    "constant", "plateau", "step", "multistep", "linear", "cosine", "one_cycle"
]
Crop: TypeAlias = Literal["random", "random_resized"]
FlipKind: TypeAlias = Literal["none", "random", "alternating"]
Padding: TypeAlias = Literal["zeros", "reflect"]
RunViews: TypeAlias = Literal["center", "mirror-and-shift"]
PolicyName: TypeAlias = Literal[
    "none",
    "trivial_augment_wide",
    "rand_augment",
    "auto_augment_imagenet",
    "auto_augment_cifar10",
    "auto_augment_svhn",
]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
Orientation: TypeAlias = Literal["upright", "stored"]


@dataclass(frozen=True)
class Preprocessing:
    """Values that turn an image of any size into the network's square input.

    The plans of training and evaluation are made from them (`flaxnets.data.plan`).
    """

    image_size: int = 224
    """Side of the network's input, in pixels."""
    train_size: int = 0
    """Side of the network's input in training, in pixels; 0 for the same side."""
    resize: int = 256
    """Pixels of the short side before the crop (photographs)."""
    resize_max: int = 0
    """Upper end of the random short side in training (`resize` is the lower); 0 disables it."""
    crop: Crop = "random"
    """Training crop of photographs: a fixed size from the resized image, or a random area and
    aspect ratio that is then resized."""
    pad: int = 4
    """Pixels added on each side before the random crop (small images)."""
    padding: Padding = "zeros"
    """Padding with zeros, or with the image reflected at its edge."""
    flip: FlipKind = "random"
    """Mirror half of the training images, where that keeps the label: a random half, or
    alternating, the other half in every second epoch (Jordan 2024, section 3.6; images in
    memory)."""
    policy: PolicyName = "none"
    """Further augmentation of training images: TrivialAugment-wide, RandAugment (two operations),
    or one of AutoAugment's learned policies."""
    policy_magnitude: int = 9
    """Strength of RandAugment's operations, from 0 to 30."""
    grayscale: float = 0.0
    """Probability that a training image loses its colours (RGB images)."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of resizing (antialiased) and of a policy's rotations."""
    orientation: Orientation = "upright"
    """Turn photographs upright as EXIF says, or take them as stored (as torchvision does)."""
    pca_std: float = 0.1
    """Standard deviation of the random PCA colour shift (RGB images); 0 for none."""
    repeats: int = 1
    """Number of augmentations of an image in an epoch, which then has fewer different images."""

    def check(self) -> None:
        """Raise InputError for values that no image can have."""
        _check_positive(self, "image_size", "repeats")
        _check_not_negative(self, "train_size", "pad", "pca_std")
        _check_share(self, "grayscale")
        if not 0 <= self.policy_magnitude <= 30:
            raise InputError(
                f"policy magnitude is {self.policy_magnitude}; expected a number from 0 to 30"
            )
        if self.resize_max and self.resize_max < self.resize:
            raise InputError(
                f"resize max {self.resize_max} is smaller than resize {self.resize}; expected 0 or "
                f"at least {self.resize}"
            )
        cropped = self.image_size
        if self.crop == "random":
            cropped = max(cropped, self.train_size)
        if self.resize < cropped:
            raise InputError(
                f"resize {self.resize} is smaller than the crop of {cropped} pixels; expected at "
                f"least {cropped}"
            )


@dataclass(frozen=True)
class Recipe:
    """Values of one training run. Rates and decays have the meaning of torch's SGD.

    `dataclasses.replace` changes values of a recipe:

        recipe = recipe_for("resnet50", "photographs")
        recipe = dataclasses.replace(recipe, batch_size=128, epochs=10)
    """

    batch_size: int
    """Images per step, summed over all devices."""
    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """Peak learning rate."""
    optimizer: Literal["sgd", "rmsprop", "rmsprop_torch", "adamw", "lars", "lamb", "muon"] = "sgd"
    """SGD with momentum; TensorFlow's RMSProp (epsilon inside the root, momentum of updates) or
    torch's (epsilon outside, momentum of gradients); Adam with decoupled weight decay; LARS (You et
    al. 2017) and LAMB (You et al. 2019) for large batches; Muon for kernels (Jordan et al. 2024)
    with SGD for the rest."""
    momentum: float = 0.9
    """Momentum of SGD, RMSProp and LARS; first decay rate of Adam and LAMB."""
    rmsprop_decay: float = 0.9
    """Decay rate of RMSProp's mean of squared gradients."""
    rmsprop_epsilon: float = 1.0
    """Constant added to RMSProp's mean of squared gradients (rmsprop) or to its root
    (rmsprop_torch)."""
    nesterov: bool = False
    """Use Nesterov's form of the momentum (SGD, LARS)."""
    muon_momentum: float = 0.95
    """Momentum of Muon, in Nesterov's form."""
    muon_keys: tuple[str, ...] = ("*",)
    """Patterns of torch keys ("layers.*") whose kernels Muon updates."""
    clip_norm: float = 0.0
    """Largest norm of the whole gradient, which is scaled down to it; 0 for no limit."""
    gradient_accumulation: int = 1
    """Number of parts of a step's images that are computed one after another to save memory."""
    weight_decay: float = 5e-4
    """Factor of the parameter that is added to its gradient (adamw, lamb: to its update)."""
    decay_norms: bool = True
    """Apply weight decay to the scales and biases of norms too."""
    no_decay: tuple[str, ...] = ()
    """Patterns of torch keys ("*.bias") whose parameters do not decay."""
    decay_factors: tuple[tuple[str, float], ...] = ()
    """Patterns of torch keys, each with a factor of the weight decay; the last match counts."""
    schedule: Schedule = "plateau"
    """Course of the rate after warm-up. linear and cosine fall to the final rate. The others
    multiply the rate by factor: plateau when the validation error stops falling, step every
    step_epochs, multistep at the milestones. one_cycle rises and falls as a cosine."""
    step_epochs: float = 30.0
    """Epochs between the multiplications of the step schedule; 1 for an exponential decay."""
    milestones: tuple[float, ...] = ()
    """Epochs of the multiplications of the multistep schedule."""
    factor: float = 0.1
    """Factor of the rate in the plateau, step and multistep schedules."""
    patience: int = 5
    """Epochs without a smaller validation error before the plateau schedule acts."""
    final_rate: float = 0.0
    """Learning rate at the end of the linear and cosine schedules."""
    warmup_epochs: float = 0.0
    """Epochs at the start in which the rate rises linearly (one_cycle: as a cosine)."""
    warmup_factor: float = 0.0
    """Share of the learning rate at which the linear rise begins."""
    pixels: Literal["standardized", "centered"] = "standardized"
    """Normalise each channel to mean 0 and deviation 1 (standardized), or subtract its mean and
    keep units of 0..255 (centered)."""
    initialization: Literal["source", "he_normal"] = "source"
    """Initial values: those of the network's source, or He et al. 2015 for every kernel (for plain
    deep networks on few images)."""
    whiten: str = ""
    """Torch key of the first convolution's kernel, to compute it from the training images so that
    it whitens their patches (Jordan 2024, section 3.1); empty for none."""
    loss: Loss = "cross_entropy"
    """Cross entropy of classes, or squared error of numbers (a class counts as a one-hot row)."""
    label_smoothing: float = 0.0
    """Share of the target that the training loss spreads over all classes."""
    random_erasing: float = 0.0
    """Probability that a rectangle of a training image is erased (Zhong et al. 2017)."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of the share by which images are blended (Zhang et al. 2017);
    0 for none. If CutMix is on too, each batch uses one of the two at random."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of the pasted area (CutMix, Yun et al. 2019); 0 for none."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of parameters and running statistics, which is
    evaluated and saved too; 0 for none."""
    ema_steps: int = 1
    """Steps between the updates of the moving average."""
    sync_batch_norm: bool = False
    """Compute batch norm statistics over the images of all devices, not of each device alone."""
    views: RunViews = "center"
    """Views of a test image after the last epoch: the image alone, or the average over the image,
    its mirror image, and both shifted by a pixel (Jordan 2024, section 3.5)."""
    aux_weight: float = 0.3
    """Weight of the losses of auxiliary classifiers, if the network has any."""
    freeze: tuple[str, ...] = ()
    """Patterns of torch keys ("features.*") whose parameters and running statistics stay fixed."""
    rate_factors: tuple[tuple[str, float], ...] = ()
    """Patterns of torch keys, each with a factor of the learning rate; the last match counts."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def normalization(self, statistics: Statistics) -> Statistics:
        """Return the mean to subtract and the deviation to divide by, for pixels in 0..1.

        `statistics` are the mean and deviation of each channel of the data.
        """
        mean, std = statistics
        return (mean, std) if self.pixels == "standardized" else (mean, (1 / 255,) * len(std))

    def check(self) -> None:
        """Raise InputError for values that no run can have."""
        self.preprocessing.check()
        _check_positive(self, "batch_size", "epochs", "learning_rate", "factor", "patience")
        _check_not_negative(self, "momentum", "weight_decay", "warmup_epochs", "aux_weight")
        _check_positive(self, "gradient_accumulation", "step_epochs", "ema_steps")
        _check_positive(self, "rmsprop_epsilon")
        _check_not_negative(self, "clip_norm", "final_rate", "mixup", "cutmix")
        _check_share(self, "rmsprop_decay")
        if not 0 <= self.muon_momentum < 1:
            raise InputError(
                f"muon momentum is {self.muon_momentum}; expected a number from 0 to below 1"
            )
        for name in ("label_smoothing", "warmup_factor", "random_erasing", "ema_decay"):
            _check_share(self, name)
        if self.loss == "squared_error" and (self.mixup or self.cutmix):
            raise InputError(
                "mixup and CutMix blend classes, which squared_error does not have; expected the "
                "loss cross_entropy, or 0 for both"
            )
        for what, factors in (("rate", self.rate_factors), ("decay", self.decay_factors)):
            for pattern, factor in factors:
                if factor < 0:
                    raise InputError(
                        f"{what} factor of {pattern} is {factor}; expected zero or more"
                    )


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


def _check_share(row, name: str) -> None:
    if not 0 <= getattr(row, name) <= 1:
        raise InputError(
            f"{name.replace('_', ' ')} is {getattr(row, name)}; expected a number from 0 to 1"
        )


def matching(*rows: tuple[str, Recipe]) -> dict[str, Recipe]:
    """Return a recipe for every network whose name matches a pattern; the last match counts."""
    return {name: recipe for pattern, recipe in rows for name in fnmatch.filter(NAMES, pattern)}
