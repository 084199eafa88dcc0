"""What every network of the library is, whatever its family."""

from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp


class Model(nn.Module):
    """A linen module with a head of `num_classes` outputs, or none, and the `input_shape` of its
    paper, (height, width, channels).
    """

    @property
    def size_step(self) -> int | None:
        """Pixels by whose multiples the sizes of the images that it reads differ; None if it reads
        those of one size, with which it was initialised.
        """
        return 1

    def headless(self) -> Self:
        """Return the network that ends where its head begins: `(N, H, W, C)` to features
        `(N, num_features)`, from the same variables. It has no auxiliary heads either.
        """
        fields: dict[str, Any] = {"aux_logits": False} if hasattr(self, "aux_logits") else {}
        return self.clone(num_classes=0, **fields)

    @property
    def num_features(self) -> int:
        """How many features the head reads; those of `input_shape`, where their number depends on
        the size of the image. Nothing is computed.
        """
        fields: dict[str, Any] = {"dense": False} if hasattr(self, "dense") else {}
        model = self.headless().clone(parent=None, **fields)  # which may be a part of a module
        images = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        return features.shape[-1]
