"""The networks of a first course: linear models and multilayer perceptrons.

- `linear_regression` is trained with squared error, the others with cross entropy.
- `softmax_regression` is the linear model of class scores.
- `perceptron` has one hidden layer, `mlp` has three.

With `hidden_features=(100, 100, 100)`, `activation="sigmoid"` and with or without `batch_norm`,
`mlp` is the network of Ioffe & Szegedy 2015 (arXiv:1502.03167), section 4.1 and Figure 1.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import activation_named
from flaxnets.layers import Array, BatchNorm, Dtype, Linear, Sequential
from flaxnets.models.base import Model


class MLP(Model):
    """Map `(N, features)` or images `(N, H, W, C)` to `(N, num_classes)`. Without hidden layers the
    network is linear.

    `activation` is "relu", "sigmoid" or "tanh". `batch_norm` adds a norm before each activation.

    Images are flattened as in torch, channels first. The first layer reads its whole input at once.
    Inputs must therefore have the size of initialisation, and there is no `dense` map.
    """

    input_shape: tuple[int, ...] = (8, 8, 1)  # scikit-learn's digits
    hidden_features: tuple[int, ...] = ()
    activation: str = "relu"
    batch_norm: bool = False
    num_classes: int = 10
    remat: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_step(self) -> None:
        """None, because the first layer reads all pixels at once."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        linear = functools.partial(Linear, dtype=self.dtype)
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
        layers = []
        for features in self.hidden_features:
            norms = [norm()] if self.batch_norm else []
            layers += [linear(features), *norms, activation_named(self.activation)]
        layers.append(linear(self.num_classes))
        return Sequential(layers, self.remat, name="classifier")(x)


VARIANTS = {
    "softmax_regression": functools.partial(MLP),
    "perceptron": functools.partial(MLP, hidden_features=(128,)),
    "mlp": functools.partial(MLP, hidden_features=(128, 128, 128)),
    # scikit-learn's diabetes data: ten features, one target
    "linear_regression": functools.partial(MLP, input_shape=(10,), num_classes=1),
}
