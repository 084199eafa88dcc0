"""VGG: Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (arXiv:1409.1556), Table 1; names and initialisation of torchvision/models/vgg.py.

torchvision pools the last map adaptively to 7x7, so that sizes other than the paper's 224 work, and
adds variants with batch normalisation. It lacks columns C and A-LRN.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

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
    he_normal_fan_out,
    local_response_norm,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

# Table 1: the widths of the 3x3 convolutions between the max pools. A pair is a width and another
# kernel size.
LRN = "LRN"  # response normalisation of Krizhevsky et al. 2012, with its constants (section 2.1)
COLUMNS = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "A-LRN": ((64, LRN), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": (
        (64, 64),
        (128, 128),
        (256, 256, (256, 1)),
        (512, 512, (512, 1)),
        (512, 512, (512, 1)),
    ),
    "D": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "E": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 32x32 pixels.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every 7x7 patch of the features.
    There is no adaptive pool then, so images need at least 224x224 pixels. With `offset_pooling`
    the last pool moves by one pixel and the classifier samples every other position. The result is
    the map at both offsets of the pool, interleaved: positions are 16 pixels apart instead of 32
    (Sermanet et al. 2013, arXiv:1312.6229, section 3.3).
    """

    column: str
    batch_norm: bool = False
    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dense: bool = False
    offset_pooling: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        zeros = nn.initializers.zeros
        conv = functools.partial(
            Conv, kernel_init=he_normal_fan_out, bias_init=zeros, dtype=self.dtype
        )
        linear = functools.partial(
            Linear, kernel_init=normal(0.01), bias_init=zeros, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        features = []
        for widths in COLUMNS[self.column]:
            for width in widths:
                if width == LRN:
                    features.append(local_response_norm(size=5, alpha=1e-4, beta=0.75, k=2))
                    continue
                width, size = (width, 3) if isinstance(width, int) else width
                features.append(conv(width, size, padding=size // 2))
                if self.batch_norm:
                    features.append(norm())
                features.append(relu)
            features.append(max_pool(2))
        if self.offset_pooling:
            features[-1] = max_pool(2, 1)
        x = Sequential(features, self.remat, name="features")(x)
        if not (self.dense or self.offset_pooling):
            x = adaptive_avg_pool(7)(x)
        dilation = 2 if self.offset_pooling else 1
        x = Sequential(
            [
                linear(self.hidden_features, patch=(7, 7), dilation=dilation), relu, dropout(),
                linear(self.hidden_features), relu, dropout(),
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {
    "vgg11": functools.partial(VGG, "A"),
    "vgg11_lrn": functools.partial(VGG, "A-LRN"),
    "vgg13": functools.partial(VGG, "B"),
    "vgg16_c": functools.partial(VGG, "C"),
    "vgg16": functools.partial(VGG, "D"),
    "vgg19": functools.partial(VGG, "E"),
    "vgg11_bn": functools.partial(VGG, "A", batch_norm=True),
    "vgg13_bn": functools.partial(VGG, "B", batch_norm=True),
    "vgg16_bn": functools.partial(VGG, "D", batch_norm=True),
    "vgg19_bn": functools.partial(VGG, "E", batch_norm=True),
}
