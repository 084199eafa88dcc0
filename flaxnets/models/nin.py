"""Network in network: Lin, Chen & Yan 2013, "Network In Network" (arXiv:1312.4400), section 3.

The paper has no table of sizes; they come from the authors' files. For CIFAR-10 these are
github.com/mavenlin/cuda-convnet, NIN/cifar-10_def, and gist e56253735ef32c3c296d (Caffe). For
ImageNet, which the paper does not train, it is gist d802a5849de39225bcc6 (Caffe). The Caffe file
for CIFAR-10 averages in its second pool. Ours takes the maximum, as the paper's section 4 and
cuda-convnet do.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.initializers import normal
from flaxnets.layers import Array, Conv, Dtype, average_positions, max_pool, relu
from flaxnets.models.base import Model

# A row is an mlpconv layer: kernel, stride and padding of its convolution; widths of this and of
# the two 1x1 convolutions; standard deviations of their initial weights; whether dropout follows
# the pool. The third width of the last row is the number of classes.
CIFAR = (
    (5, 1, 2, (192, 160, 96), (0.05, 0.05, 0.05), True),
    (5, 1, 2, (192, 192, 192), (0.05, 0.05, 0.05), True),
    (3, 1, 1, (192, 192), (0.05, 0.05, 0.05), False),
)
IMAGENET = (
    (11, 4, 0, (96, 96, 96), (0.01, 0.05, 0.05), False),
    (5, 1, 2, (256, 256, 256), (0.05, 0.05, 0.05), False),
    (3, 1, 1, (384, 384, 384), (0.01, 0.05, 0.05), True),
    (3, 1, 1, (1024, 1024), (0.05, 0.05, 0.01), False),
)


class MLPConv(nn.Module):
    """Section 3.1: a perceptron with two more layers in place of the convolution's linear filter.

    Applied at every position it is a convolution and two "cascaded cross channel parametric
    pooling" layers, which are 1x1 convolutions. A ReLU follows each, including the last one of the
    network.
    """

    kernel_size: int
    stride: int
    padding: int
    widths: Sequence[int]
    deviations: Sequence[float]
    last_bias: float
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        geometries = ((self.kernel_size, self.stride, self.padding), (1,), (1,))
        names = ("conv", "cccp1", "cccp2")
        layers = zip(names, self.widths, geometries, self.deviations, strict=True)
        for name, width, geometry, deviation in layers:
            bias = nn.initializers.constant(self.last_bias if name == "cccp2" else 0.0)
            init = normal(deviation)
            x = self.conv(width, *geometry, kernel_init=init, bias_init=bias, name=name)(x)
            x = relu(x)
        return x


class NIN(Model):
    """Map images `(N, H, W, C)` to class scores `(N, num_classes)`, the mean of each class's map
    (section 3.2).

    The scores are never negative, because a ReLU makes the maps. `nin_cifar` takes images of
    32x32x3 in the paper and at least 4x4, `nin_imagenet` of 224x224x3 and at least 39x39. `remat`
    recomputes each mlpconv layer in the backward pass.

    `class_bias` is the initial bias of the class maps. The authors' is zero, which needs their
    whitened images on CIFAR-10. With plain images all features are alike at first, and the maps of
    about half of the classes start below zero everywhere. The last ReLU then passes no gradient to
    them.

    With `dense`: the maps themselves, `(N, H', W', num_classes)`.
    """

    mlpconvs: Sequence[tuple]
    num_classes: int = 1000
    dropout_rate: float = 0.5
    class_bias: float = 0.0
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        mlpconv = nn.remat(MLPConv) if self.remat else MLPConv
        for number, row in enumerate(self.mlpconvs, 1):
            kernel_size, stride, padding, widths, deviations, dropout_follows = row
            last = number == len(self.mlpconvs)
            widths = (*widths, self.num_classes) if last else widths
            bias = self.class_bias if last else 0.0
            x = mlpconv(
                kernel_size, stride, padding, widths, deviations, bias, conv,
                name=f"mlpconv{number}",
            )(x)  # fmt: skip
            if not last:
                x = max_pool(3, 2, ceil_mode=True)(x)  # Caffe and cuda-convnet round up
            if dropout_follows:
                x = dropout()(x)
        return x if self.dense else average_positions(x)


VARIANTS = {
    "nin_cifar": functools.partial(
        NIN, mlpconvs=CIFAR, num_classes=10, class_bias=1.0, input_shape=(32, 32, 3)
    ),
    "nin_imagenet": functools.partial(NIN, mlpconvs=IMAGENET),
}
