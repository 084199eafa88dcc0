"""GoogLeNet: Szegedy et al. 2015, "Going Deeper with Convolutions" (arXiv:1409.4842), Table 1;
names and initialisation of torchvision/models/googlenet.py.

torchvision departs from the paper in these points, and so do we:

- Batch normalisation (epsilon 1e-3) replaces biases and local response normalisation.
- Kernels are 3x3 where Table 1 has 5x5 (github.com/pytorch/vision/issues/906). The field
  `five_by_five` restores them.
- The dropout rate before the last layer is 0.2 instead of 0.4.
- The auxiliary heads pool adaptively to 4x4; section 5 pools 5x5 windows at stride 3.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormRelu, identity
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    adaptive_avg_pool,
    average_positions,
    imagenet_to_unit_range,
    joined,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

# Table 1: widths of the 1x1, the 3x3 reduction, the 3x3, the 5x5 reduction, the 5x5 and the pool's
# projection, in the order of the network.
ROWS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_AFTER = {"3b": max_pool(3, 2, ceil_mode=True), "4e": max_pool(2, 2, ceil_mode=True)}
HEAD_AFTER = {"4a": 1, "4d": 2}

# torchvision truncates at +-2, which is 200 standard deviations. That is a plain normal
# distribution.
hundredth = normal(0.01)


class Inception(nn.Module):
    """The module of Figure 2b. With `naive` that of Figure 2a, which has no 1x1 reductions and no
    pool projection.
    """

    widths: tuple[int, ...]
    unit: Callable[..., nn.Module]
    five_by_five: bool = False
    naive: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one, reduce3, three, reduce5, five, project = self.widths
        kernel = 5 if self.five_by_five else 3
        branches = [
            [self.unit(reduce3), self.unit(three, 3, padding=1)],
            [self.unit(reduce5), self.unit(five, kernel, padding=kernel // 2)],
            [max_pool(3, 1, padding=1), self.unit(project)],
        ]
        if self.naive:
            branches = [branches[0][1:], branches[1][1:], branches[2][:1]]
        outputs = [self.unit(one, name="branch1")(x)]
        for number, branch in enumerate(branches, 2):
            outputs.append(Sequential(branch, name=f"branch{number}")(x))
        return joined(outputs)


class AuxiliaryHead(nn.Module):
    """Section 5: a classifier of an intermediate map, `(N, H, W, C)` to `(N, num_classes)`."""

    num_classes: int
    unit: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.unit(128, name="conv")(adaptive_avg_pool(4)(x))
        x = relu(self.linear(1024, patch=(4, 4), name="fc1")(x))
        return average_positions(self.linear(self.num_classes, name="fc2")(self.dropout()(x)))


class GoogLeNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 15x15 pixels.

    In training the auxiliary heads sow their logits into the collection `"aux_logits"`, under
    torchvision's names `"aux_logits1"` and `"aux_logits2"`. The published weights need
    `transform_input=True`: it brings RGB images, normalised by ImageNet's statistics as for the
    other networks, to [-1, 1]. `remat` recomputes each module in the backward pass.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every position of the features.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    transform_input: bool = False
    five_by_five: bool = False
    naive: bool = False
    dropout_rate: float = 0.2
    aux_dropout_rate: float = 0.7
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, use_bias=False, kernel_init=hundredth, dtype=self.dtype)
        linear = functools.partial(Linear, kernel_init=hundredth, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, epsilon=1e-3, use_running_average=not train, dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, deterministic=not train)
        unit = functools.partial(ConvNormRelu, conv=conv, norm=norm)
        head = functools.partial(
            AuxiliaryHead, self.num_classes, unit, linear,
            functools.partial(dropout, self.aux_dropout_rate),
        )  # fmt: skip
        inception = functools.partial(
            nn.remat(Inception) if self.remat else Inception,
            unit=unit, five_by_five=self.five_by_five, naive=self.naive,
        )  # fmt: skip

        if self.transform_input:
            x = imagenet_to_unit_range(x, self.dtype)
        x = unit(64, 7, 2, 3, name="conv1")(x)
        x = max_pool(3, 2, ceil_mode=True)(x)
        x = unit(64, name="conv2")(x)
        x = unit(192, 3, padding=1, name="conv3")(x)
        x = max_pool(3, 2, ceil_mode=True)(x)
        for row, widths in ROWS.items():
            x = inception(widths, name=f"inception{row}")(x)
            if row in HEAD_AFTER and self.aux_logits and (train or self.is_initializing()):
                logits = head(name=f"aux{HEAD_AFTER[row]}")(x)
                if not self.is_initializing():
                    self.sow("aux_logits", f"aux_logits{HEAD_AFTER[row]}", logits)
            x = POOL_AFTER.get(row, identity)(x)
        if not self.dense:
            x = adaptive_avg_pool(1)(x)
        x = linear(self.num_classes, name="fc")(dropout(self.dropout_rate)(x))
        return x if self.dense else average_positions(x)


VARIANTS = {"googlenet": functools.partial(GoogLeNet)}
