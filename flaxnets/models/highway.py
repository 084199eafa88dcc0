"""Highway networks: Srivastava, Greff & Schmidhuber 2015, "Training Very Deep Networks"
(arXiv:1507.06228), after "Highway Networks" (arXiv:1505.00387).

- `highway19_cifar`: "Highway B" of Table 2, the comparison with FitNets, 2.3 M parameters. Widths,
  dropout and initialisation are those of the authors' Caffe files, github.com/flukeskywalker/
  highway-networks, examples/highways/cifar10-19layers.
- `highway11_cifar` and `highway32_cifar`: "Highway A" and "C" of Table 2. The paper gives only the
  number of layers and parameters, 236 k and 1.25 M. The widths are ours: they meet both numbers in
  the layout of the 19 layers.
- `highway_mlp`: section 3.1, ten thin fully connected layers on MNIST.
- `plain_mlp`: the plain network of section 3.1. Its layers have 71 units instead of 50, so that a
  layer has as many parameters.

With `gated=False` every network is its plain counterpart.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import Activation, activation_named
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    average_positions,
    he_normal_fan_in,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

# Three stages: channels, and the number of highway layers. A plain convolution before them sets the
# channels.
STAGES = {
    11: ((28, 2), (28, 2), (64, 2)),
    19: ((32, 4), (80, 5), (128, 5)),
    32: ((32, 9), (48, 9), (64, 9)),
}


class Highway(nn.Module):
    """Equation 3: y = H(x) T(x) + x (1 - T(x)), of the shape of x.

    `layer` makes H, which `activation` follows, and the transform gate T, a sigmoid. A negative
    `gate_bias` lets the layer carry its input at first (section 2.2). With `gated=False` it is the
    plain layer H(x).
    """

    layer: Callable[..., nn.Module]
    gate_bias: float
    activation: Activation = relu
    gated: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate_init = nn.initializers.constant(self.gate_bias)
        h = self.activation(self.layer(x.shape[-1], name="H")(x))
        if not self.gated:
            return h
        t = nn.sigmoid(self.layer(x.shape[-1], bias_init=gate_init, name="T")(x))
        return h * t + x * (1 - t)


class HighwayCIFAR(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images need at
    least 4x4 pixels.

    Layers are numbered consecutively as in the authors' files; "fc" is called "ip2" there. Dropout
    has one rate: at the input, after both pools and before the linear layer. `remat` recomputes
    each highway layer in the backward pass.

    With `dense`: the map of logits `(N, H / 4, W / 4, num_classes)`. The logits are its mean over
    positions.
    """

    stages: Sequence[tuple[int, int]]
    gated: bool = True
    gate_bias: float = -2.0
    num_classes: int = 10
    dropout_rate: float = 0.2
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # The authors' Caffe draws "xavier" weights from N(0, 2 / fan_in); biases are zero
        # (include/caffe/filler.hpp). Their first layer asks for a "gaussian" with `value: 0.05`.
        # The filler ignores `value`, so their deviation is 1. We use the 0.05 that was probably
        # meant: their linear layer has `std: 0.05`.
        zeros, narrow = nn.initializers.zeros, normal(0.05)
        conv = functools.partial(
            Conv, kernel_init=he_normal_fan_in, bias_init=zeros, dtype=self.dtype
        )
        conv3x3 = functools.partial(conv, kernel_size=3, padding=1)
        highway = functools.partial(
            nn.remat(Highway) if self.remat else Highway,
            conv3x3, self.gate_bias, gated=self.gated,
        )  # fmt: skip
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = dropout()(x)
        number = 0
        for stage, (width, depth) in enumerate(self.stages):
            if stage > 0:
                x = dropout()(max_pool(2)(x))
            number += 1
            init = narrow if stage == 0 else he_normal_fan_in
            x = relu(conv3x3(width, kernel_init=init, name=f"conv{number}")(x))
            for _ in range(depth):
                number += 1
                x = highway(name=f"conv{number}")(x)
        x = relu(conv(100, 1, name=f"conv{number + 1}")(x))
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, kernel_init=narrow, bias_init=zeros, dtype=self.dtype, name="fc"
        )(dropout()(x))


class HighwayMLP(Model):
    """Map images `(N, H, W, C)`, 28x28x1 in the paper, to logits `(N, num_classes)`. Images need at
    least 28x28 pixels.

    The network is a plain layer over the image and highway layers, `depth` in all, then the linear
    output layer. The paper searched the activation, "relu" or "tanh", and a gate bias from -1 to
    -10. It reports a bias of -2, for 50 layers (section 4.1). `patch` is the size of the images.
    `remat` recomputes each highway layer in the backward pass.

    Larger images give the mean of the logits over every patch, or with `dense` their map.
    """

    depth: int = 10
    width: int = 50
    gated: bool = True
    gate_bias: float = -2.0
    activation: str = "relu"
    patch: tuple[int, int] = (28, 28)
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (28, 28, 1)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        linear = functools.partial(
            Linear, kernel_init=he_normal_fan_in, bias_init=nn.initializers.zeros, dtype=self.dtype
        )
        activation = activation_named(self.activation)
        highway = functools.partial(
            nn.remat(Highway) if self.remat else Highway,
            linear, self.gate_bias, activation, self.gated,
        )  # fmt: skip
        x = activation(linear(self.width, patch=self.patch, name="fc1")(x))
        for number in range(2, self.depth + 1):
            x = highway(name=f"fc{number}")(x)
        x = linear(self.num_classes, name="output")(x)
        return x if self.dense else average_positions(x)


VARIANTS = {
    "highway11_cifar": functools.partial(HighwayCIFAR, stages=STAGES[11]),
    "highway19_cifar": functools.partial(HighwayCIFAR, stages=STAGES[19]),
    "highway32_cifar": functools.partial(HighwayCIFAR, stages=STAGES[32]),
    "highway_mlp": functools.partial(HighwayMLP),
    "plain_mlp": functools.partial(HighwayMLP, width=71, gated=False),
}
