"""ConvNeXt: Liu et al. 2022, "A ConvNet for the 2020s" (arXiv:2201.03545), section 3; names,
initialisation and stochastic depth rates of torchvision/models/convnext.py.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import LayerNorm, StochasticDepth, gelu, identity, rates_by_depth
from flaxnets.initializers import normal
from flaxnets.layers import Array, Conv, Dtype, Linear, Sequential, average_positions, residual_sum
from flaxnets.models.base import Model

# Section 3: channels and blocks of the stages res2 to res5.
SIZES = {
    "tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "small": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "large": ((192, 384, 768, 1536), (3, 3, 27, 3)),
}
LAYER_SCALE = 1e-6  # appendix A.1


class Block(nn.Module):
    """Figure 4, right: a 7x7 depthwise convolution and a norm, then two linear layers through four
    times the channels. The branch is multiplied by a learned factor for each channel, 1e-6 at
    first.
    """

    stochastic_depth_rate: float
    conv: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        layers = [
            self.conv(channels, 7, padding=3, groups=channels),
            identity,
            self.norm(),
            self.linear(4 * channels),
            gelu,
            self.linear(channels),
        ]
        y = Sequential(layers, name="block")(x)
        init = nn.initializers.constant(LAYER_SCALE)
        scale = self.param("layer_scale", init, (1, 1, channels), jnp.float32)
        drop = StochasticDepth(self.stochastic_depth_rate, self.train, name="stochastic_depth")
        return residual_sum(x, drop(scale[None].astype(y.dtype) * y))


class ConvNeXt(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 32x32 pixels.

    `stochastic_depth_rate` is the rate of the last block; rates grow linearly from zero in the
    first block. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions. The norm of the head acts on the mean of all positions, so in the map every position
    is divided by the deviation of that mean.
    """

    channels: Sequence[int]
    depths: Sequence[int]
    stochastic_depth_rate: float
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        parts = {
            "kernel_init": normal(0.02),
            "bias_init": nn.initializers.zeros,
            "dtype": self.dtype,
        }
        conv, linear = functools.partial(Conv, **parts), functools.partial(Linear, **parts)
        norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        block = functools.partial(
            nn.remat(Block) if self.remat else Block,
            conv=conv,
            linear=linear,
            norm=norm,
            train=train,
        )
        rates = iter(rates_by_depth(self.stochastic_depth_rate, sum(self.depths)))

        layers = [Sequential([conv(self.channels[0], 4, 4), norm()])]
        for stage, (channels, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            if stage > 0:
                layers.append(Sequential([norm(), conv(channels, 2, 2)]))
            layers.append(Sequential([block(next(rates)) for _ in range(depth)]))
        x = Sequential(layers, name="features")(x)
        norm0 = norm(name="classifier.0")
        mean = average_positions(x)
        if self.dense:
            variance = jnp.expand_dims(mean.var(-1, keepdims=True), (1, 2))
            x = norm0(x, variance)
        else:
            x = norm0(mean)
        return linear(self.num_classes, name="classifier.2")(x)


VARIANTS = {
    f"convnext_{size}": functools.partial(
        ConvNeXt, channels=channels, depths=depths, stochastic_depth_rate=rate
    )
    for (size, (channels, depths)), rate in zip(SIZES.items(), (0.1, 0.4, 0.5, 0.5), strict=True)
}
