"""The networks of a first course: linear models and multilayer perceptrons.

`linear_regression` is trained with squared error, the others with cross entropy: softmax regression
is the linear model of class scores, the perceptron puts one hidden layer before it, the deep one
three.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers import Array, Dtype, Linear, Sequential, relu
from flaxnets.models.base import Model


class MLP(Model):
    """`(N, features)` or images `(N, H, W, C)` to `(N, num_classes)`; linear if nothing is hidden.

    Images are flattened as in torch, channels first. The first layer reads all of its input at
    once, so a size other than at initialisation does not fit, and there is no `dense` map.
    """

    input_shape: tuple[int, ...] = (8, 8, 1)  # scikit-learn's digits
    hidden_features: tuple[int, ...] = ()
    num_classes: int = 10
    remat: bool = False
    dtype: Dtype = jnp.float32

    size_step = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        linear = functools.partial(Linear, dtype=self.dtype)
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
        layers = []
        for features in self.hidden_features:
            layers += [linear(features), relu]
        layers.append(linear(self.num_classes))
        return Sequential(layers, self.remat, name="classifier")(x)


VARIANTS = {
    "softmax_regression": functools.partial(MLP),
    "perceptron": functools.partial(MLP, hidden_features=(128,)),
    "mlp": functools.partial(MLP, hidden_features=(128, 128, 128)),
    # scikit-learn's diabetes data: ten features, one target
    "linear_regression": functools.partial(MLP, input_shape=(10,), num_classes=1),
}
