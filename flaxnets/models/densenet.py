"""DenseNet: Huang, Liu, van der Maaten & Weinberger 2016, "Densely Connected Convolutional
Networks" (arXiv:1608.06993), Tables 1 and 2; names and initialisation of
torchvision/models/densenet.py.

- `densenet121 161 169 201`: Table 1, as in torchvision. The paper's 161 has the same layers.
- `densenet_bc_100_12 250_24 190_40`: Table 2, for 32x32 images, by depth and growth rate, with
  bottlenecks and compression ("BC"). Not in torchvision; modules keep the names of its ImageNet
  networks.
- `densenet_40_12 100_12 100_24`: Table 2, without bottlenecks and compression.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    average_positions,
    avg_pool,
    he_normal_fan_in,
    joined,
    max_pool,
)
from flaxnets.models.base import Model

Moments = tuple[Array, Array]  # mean and variance of each channel over the batch


class DenseLayer(nn.Module):
    """A 1x1 bottleneck to 4 `growth_rate` channels and a 3x3 convolution, each after its norm and
    ReLU. With `bottleneck=False` the 3x3 convolution alone.

    The layer takes the list of all earlier maps of the block instead of their concatenation. Under
    `remat` the stored memory then grows with the depth of the block and not with its square. It
    also takes the moments of all these maps, for its first norm.
    """

    growth_rate: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    bottleneck: bool = True

    @nn.compact
    def __call__(self, maps: Sequence[Array], moments: Moments) -> Array:
        x = self.norm(name="norm1")(joined(maps), moments, relu=True)
        if not self.bottleneck:
            return self.dropout()(self.conv(self.growth_rate, 3, padding=1, name="conv1")(x))
        x = self.dropout()(self.conv(4 * self.growth_rate, 1, name="conv1")(x))
        x = self.norm(name="norm2")(x, relu=True)
        return self.dropout()(self.conv(self.growth_rate, 3, padding=1, name="conv2")(x))


class Transition(nn.Module):
    """Reduce the channels to the share `compression` and the map to half its height and width."""

    compression: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, moments: Moments) -> Array:
        y = self.norm(name="norm")(x, moments, relu=True)
        features = int(x.shape[-1] * self.compression)
        return avg_pool(2)(self.dropout()(self.conv(features, 1, name="conv")(y)))


class DenseNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 29x29 pixels.

    `depths` counts the layers of each block. With `small_images` (32x32x3 in the paper, at least
    4x4) the first convolution is 3x3 at stride 1, without norm and pool.

    `bottleneck` and `compression` are those of section 3. The first convolution has
    `first_features` channels; None stands for twice the growth rate.

    `dropout_rate` acts after every convolution but the first (section 4.2: 0.2 without data
    augmentation). torchvision's `drop_rate` skips the bottlenecks and transitions. `remat`
    recomputes each layer in the backward pass (Pleiss et al. 2017, arXiv:1707.06990).

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`, or
    `(N, H / 4, W / 4, num_classes)` with `small_images`. The logits are its mean over positions.
    """

    depths: Sequence[int]
    growth_rate: int = 32
    small_images: bool = False
    bottleneck: bool = True
    compression: float = 0.5
    first_features: int | None = None
    num_classes: int = 1000
    dropout_rate: float = 0.0
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_in, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        parts = {"conv": conv, "norm": norm, "dropout": dropout}
        dense_layer = functools.partial(
            nn.remat(DenseLayer) if self.remat else DenseLayer,
            self.growth_rate, bottleneck=self.bottleneck, **parts,
        )  # fmt: skip

        first_features = self.first_features or 2 * self.growth_rate
        if self.small_images:
            x = conv(first_features, 3, padding=1, name="features.conv0")(x)
        else:
            x = conv(first_features, 7, 2, 3, name="features.conv0")(x)
            x = max_pool(3, 2, 1)(norm(name="features.norm0")(x, relu=True))
        # A map has the same moments in every norm that reads it. This norm computes them once for
        # all.
        norm5 = norm(name="features.norm5")
        moments = norm5.moments(x)
        for block, depth in enumerate(self.depths, 1):
            if block > 1:
                transition = Transition(
                    self.compression, **parts, name=f"features.transition{block - 1}"
                )
                x = transition(x, moments)
                moments = norm5.moments(x)
            maps = [x]
            for layer in range(1, depth + 1):
                name = f"features.denseblock{block}.denselayer{layer}"
                maps.append(dense_layer(name=name)(tuple(maps), moments))
                both = moments, norm5.moments(maps[-1])
                moments = jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)
            x = joined(maps)
            # readable on request (`inference.features`)
            self.sow("intermediates", f"features.denseblock{block}", x)
        x = norm5(x, moments, relu=True)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, bias_init=nn.initializers.zeros, dtype=self.dtype, name="classifier"
        )(x)


# Table 2: a depth of L means three blocks of (L - 4) / 6 layers with two convolutions each, or of
# (L - 4) / 3 layers with one.
cifar = functools.partial(DenseNet, small_images=True, num_classes=10, input_shape=(32, 32, 3))
plain = functools.partial(cifar, bottleneck=False, compression=1.0, first_features=16)

VARIANTS = {
    "densenet121": functools.partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenet161": functools.partial(DenseNet, depths=(6, 12, 36, 24), growth_rate=48),
    "densenet169": functools.partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": functools.partial(DenseNet, depths=(6, 12, 48, 32)),
    "densenet_40_12": functools.partial(plain, depths=(12,) * 3, growth_rate=12),
    "densenet_100_12": functools.partial(plain, depths=(32,) * 3, growth_rate=12),
    "densenet_100_24": functools.partial(plain, depths=(32,) * 3, growth_rate=24),
    "densenet_bc_100_12": functools.partial(cifar, depths=(16,) * 3, growth_rate=12),
    "densenet_bc_250_24": functools.partial(cifar, depths=(41,) * 3, growth_rate=24),
    "densenet_bc_190_40": functools.partial(cifar, depths=(31,) * 3, growth_rate=40),
}
