"""PReLU-nets A, B and C: He et al. 2015, "Delving Deep into Rectifiers: Surpassing Human-Level
Performance on ImageNet Classification" (arXiv:1502.01852), Table 3.

Each convolution and hidden linear layer has a rectifier with one learned slope per channel. The
last map is pooled over a pyramid of bins (He et al. 2014, arXiv:1406.4729, section 2.2), so images
of any size give the same number of features.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    he_normal_fan_out,
    max_pool,
)
from flaxnets.models.base import Model

# Table 3: channels and 3x3 convolutions of the stages on maps of 56, 28 and 14 pixels.
STAGES = {
    "A": ((256, 5), (512, 5), (512, 5)),
    "B": ((256, 6), (512, 6), (512, 6)),
    "C": ((384, 6), (768, 6), (896, 6)),
}
LEVELS = (7, 3, 2, 1)  # bins on each side
WINDOW = (14, 14)  # the last map of a 224-pixel image


class PReLU(nn.Module):
    """Equation 1: negative inputs are multiplied by a learned slope of their channel, 0.25 at
    first.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.param("weight", nn.initializers.constant(0.25), x.shape[-1:], jnp.float32)
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class Rectified(nn.Module):
    """A layer and its PReLU."""

    make: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return PReLU(name="prelu")(self.make(name="layer")(x))


def pyramid_pool(x: Array, window: tuple[int, int], levels: Sequence[int] = LEVELS) -> Array:
    """Return the maxima of `x` (N, H, W, C) in the bins of every window, (N, H', W', C * bins).

    The order is torch's: level by level, channels first. Bin i of n covers the pixels from floor(i
    / n) to ceil((i + 1) / n) of the window's side.
    """
    rows, columns = (size - side + 1 for size, side in zip(x.shape[1:3], window, strict=True))
    sliding = {window: max_pool(window, 1)(x)}  # maxima at all positions, by size of the bin

    def maximum(top: int, bottom: int, left: int, right: int) -> Array:
        size = bottom - top, right - left
        if size not in sliding:
            sliding[size] = max_pool(size, 1)(x)
        return sliding[size][:, top : top + rows, left : left + columns]

    maps = []
    for n in levels:
        vertical, horizontal = (
            [(i * side // n, -(-(i + 1) * side // n)) for i in range(n)] for side in window
        )
        level = jnp.stack([maximum(*v, *h) for v in vertical for h in horizontal], -1)
        maps.append(level.reshape(*level.shape[:3], -1))
    return jnp.concatenate(maps, -1)


class PReLUNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 15x15 pixels.

    `stages` are rows of Table 3. `remat` recomputes each convolution in the backward pass. The
    paper does not decay slopes; their keys are "*.prelu.weight".

    The pyramid covers the whole map. With `dense` it covers each window of 14x14 pixels of the map,
    and the result is the map of logits `(N, H / 16 - 13, W / 16 - 13, num_classes)`. Its mean is
    not the logits. Images then need at least 223x223 pixels.
    """

    stages: Sequence[tuple[int, int]]
    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Section 3, "Training": equation 14, a variance of 2 / fan_out; zero biases.
        start = {
            "kernel_init": he_normal_fan_out,
            "bias_init": nn.initializers.zeros,
            "dtype": self.dtype,
        }
        conv, linear = functools.partial(Conv, **start), functools.partial(Linear, **start)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        rectified = nn.remat(Rectified) if self.remat else Rectified

        x = rectified(functools.partial(conv, 96, 7, 2, 3), name="conv1")(x)
        for stage, (features, depth) in enumerate(self.stages, 2):
            x = max_pool(2)(x)
            conv3x3 = functools.partial(conv, features, 3, padding=1)
            x = Sequential([rectified(conv3x3) for _ in range(depth)], name=f"conv{stage}")(x)
        x = pyramid_pool(x, WINDOW if self.dense else (x.shape[1], x.shape[2]))
        for number in (1, 2):
            hidden = functools.partial(linear, self.hidden_features)
            x = dropout()(Rectified(hidden, name=f"fc{number}")(x))
        x = linear(self.num_classes, name="fc3")(x)
        return x if self.dense else average_positions(x)


VARIANTS = {
    "prelu_net_a": functools.partial(PReLUNet, stages=STAGES["A"]),
    "prelu_net_b": functools.partial(PReLUNet, stages=STAGES["B"]),
    "prelu_net_c": functools.partial(PReLUNet, stages=STAGES["C"]),
}
