"""The networks of a first course: linear models and multilayer perceptrons.

`linear_regression` is trained with squared error, the others with cross entropy: softmax regression
is the linear model of class scores, the perceptron puts one hidden layer before it, the deep one
three.

With `hidden_features=(100, 100, 100)`, `activation="sigmoid"` and with or without `batch_norm` the
deep one is the network of Figure 1 of Ioffe & Szegedy 2015 (arXiv:1502.03167, section 4.1).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import activation_named
from flaxnets.layers import Array, BatchNorm, Dtype, Linear, Sequential
from flaxnets.models.base import Model


class MLP(Model):
    """`(N, features)` or images `(N, H, W, C)` to `(N, num_classes)`; linear if nothing is hidden.

    `activation` is "relu", "sigmoid" or "tanh"; with `batch_norm` there is a norm before it.

    Images are flattened as in torch, channels first. The first layer reads all of its input at
    once, so a size other than at initialisation does not fit, and there is no `dense` map.
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
        """The first layer reads all pixels at once."""

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
