"""The class of every network of the library."""

from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp


class Model(nn.Module):
    """A linen module with a head of `num_classes` outputs, or none, and an attribute `input_shape`:
    the (height, width, channels) of its paper.
    """

    @property
    def size_step(self) -> int | None:
        """Step in pixels between the image sizes that fit the network; None if only the size of
        initialisation fits.
        """
        return 1

    def headless(self) -> Self:
        """Return the network without its head: `(N, H, W, C)` to features `(N, num_features)`.

        It uses the same variables and has no auxiliary heads.
        """
        fields: dict[str, Any] = {"aux_logits": False} if hasattr(self, "aux_logits") else {}
        return self.clone(num_classes=0, **fields)

    @property
    def num_features(self) -> int:
        """Number of features that the head reads, found from shapes alone.

        Where it depends on the size of the image, `input_shape` decides.
        """
        fields: dict[str, Any] = {"dense": False} if hasattr(self, "dense") else {}
        # `self` may be bound inside another module
        model = self.headless().clone(parent=None, **fields)
        images = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
        features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        return features.shape[-1]
