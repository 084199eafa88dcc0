"""Vision Transformer: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words: Transformers for
Image Recognition at Scale" (arXiv:2010.11929), Table 1; names and initialisation of
torchvision/models/vision_transformer.py.

The head is the linear layer of fine-tuning (section 3.2), without the hidden layer of the paper's
pre-training.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.attention import FeedForward, SelfAttention
from flaxnets.blocks import LayerNorm
from flaxnets.errors import InputError
from flaxnets.initializers import normal
from flaxnets.layers import Array, Conv, Dtype, Linear, residual_sum
from flaxnets.models.base import Model

# Table 1.
BASE = {"layers": 12, "features": 768, "mlp_features": 3072, "heads": 12}
LARGE = {"layers": 24, "features": 1024, "mlp_features": 4096, "heads": 16}
HUGE = {"layers": 32, "features": 1280, "mlp_features": 5120, "heads": 16}


class EncoderBlock(nn.Module):
    """Figure 1, right: attention, then two linear layers at each position. A norm comes before each
    part.
    """

    heads: int
    mlp_features: int
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        linear = functools.partial(
            Linear,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=normal(1e-6),
            dtype=self.dtype,
        )
        y = SelfAttention(self.heads, self.dtype, name="self_attention")(self.norm(name="ln_1")(x))
        x = residual_sum(x, self.dropout(name="dropout")(y))
        mlp = FeedForward(self.mlp_features, linear, self.dropout, name="mlp")
        return residual_sum(x, mlp(self.norm(name="ln_2")(x)))


class VisionTransformer(Model):
    """Map square images `(N, H, H, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`.

    The side of the images must be a multiple of `patch_size`. Every patch has a position embedding,
    so images must have the size of initialisation; others raise InputError. Weights of another size
    are interpolated (`flaxnets.convert.interpolate_positions`). `image_size` is the side of
    `input_shape`.

    `dropout_rate` acts after the position embeddings and after every linear layer, except those of
    queries, keys and values (appendix B.1: 0.1 on ImageNet; torchvision: 0). `remat` recomputes
    each layer of the encoder in the backward pass.

    Only the class token is classified, so there is no `dense` map.
    """

    patch_size: int
    layers: int
    features: int
    mlp_features: int
    heads: int
    image_size: int = 224
    num_classes: int = 1000
    dropout_rate: float = 0.0
    remat: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_step(self) -> None:
        """None, because every patch has a position embedding."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        if height != width or height % self.patch_size or not height:
            raise InputError(
                f"the images have {height}x{width} pixels; expected squares whose side is a "
                f"multiple of {self.patch_size}, such as {self.image_size}"
            )
        norm = functools.partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        block = functools.partial(
            nn.remat(EncoderBlock) if self.remat else EncoderBlock,
            self.heads,
            self.mlp_features,
            norm,
            dropout,
            self.dtype,
        )
        zeros = nn.initializers.zeros

        fan_in = self.patch_size**2 * x.shape[-1]
        x = Conv(
            self.features,
            self.patch_size,
            self.patch_size,
            kernel_init=normal(math.sqrt(1 / fan_in)),
            bias_init=zeros,
            dtype=self.dtype,
            name="conv_proj",
        )(x)
        x = x.reshape(len(x), -1, self.features)
        token = self.param("class_token", zeros, (1, 1, self.features), jnp.float32)
        token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.features))
        x = self._with_positions(jnp.concatenate([token, x], 1))
        x = dropout(name="encoder.dropout")(x)
        for layer in range(self.layers):
            x = block(name=f"encoder.layers.encoder_layer_{layer}")(x)
        x = norm(name="encoder.ln")(x)[:, 0]
        return Linear(
            self.num_classes,
            kernel_init=zeros,
            bias_init=zeros,
            dtype=self.dtype,
            name="heads.head",
        )(x)

    def _with_positions(self, x: Array) -> Array:
        name, shape = "encoder.pos_embedding", (1, *x.shape[1:])
        if self.has_variable("params", name):
            positions = self.get_variable("params", name).shape[1]
            if positions != shape[1]:
                side = math.isqrt(positions - 1) * self.patch_size
                raise InputError(
                    f"the images have {shape[1] - 1} patches, the network's position embeddings "
                    f"are for {positions - 1}; expected {side}x{side} pixels, or load the weights "
                    "for this size"
                )
        embedding = self.param(name, normal(0.02), shape, jnp.float32)
        return x + embedding.astype(x.dtype)


VARIANTS = {
    "vit_b_16": functools.partial(VisionTransformer, patch_size=16, **BASE),
    "vit_b_32": functools.partial(VisionTransformer, patch_size=32, **BASE),
    "vit_l_16": functools.partial(VisionTransformer, patch_size=16, **LARGE),
    "vit_l_32": functools.partial(VisionTransformer, patch_size=32, **LARGE),
    "vit_h_14": functools.partial(VisionTransformer, patch_size=14, **HUGE),
}
