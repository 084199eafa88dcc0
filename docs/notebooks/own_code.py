# %% [markdown]
# # A network inside your own JAX code
#
# A network is a function of variables and images. So `jit`, `vmap`, `grad` and NNX work on it as on
# any other function.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_sample_images

from flaxnets import create_model
from flaxnets.inference.features import features

photos = np.stack([photo[::4, ::4][:96, :96] for photo in load_sample_images().images])
images = jnp.asarray((photos / np.float32(255) - 0.45) / 0.22)  # (2, 96, 96, 3)
model = create_model("resnet20_cifar")
variables = jax.jit(model.init)(jax.random.key(0), images)
logits = jax.jit(model.apply)(variables, images)
print(logits.shape)

# %% [markdown]
# ## grad: which pixels matter
#
# The gradient of the best score by the image, for each image by itself: `vmap` of `grad`.


# %%
def best_score(image):
    return model.apply(variables, image[None])[0].max()


saliency = jax.jit(jax.vmap(jax.grad(best_score)))(images)
assert saliency.shape == images.shape
assert float(jnp.abs(saliency).max()) > 0

# %% [markdown]
# ## vmap: many networks at once
#
# Variables of several seeds, stacked, are an ensemble in one program.

# %%
small = create_model("lenet5")
digits = jnp.zeros((4, 28, 28, 1))
keys = jax.random.split(jax.random.key(0), 3)
ensemble = jax.jit(jax.vmap(small.init, (0, None)))(keys, digits)
scores = jax.jit(jax.vmap(small.apply, (0, None)))(ensemble, digits)
assert scores.shape == (3, 4, 10)
alone = small.apply(jax.tree.map(lambda leaf: leaf[1], ensemble), digits)
np.testing.assert_allclose(scores[1], alone, atol=1e-5)

# %% [markdown]
# ## A backbone in your own module


# %%
class ImagesAndAge(nn.Module):
    @nn.compact
    def __call__(self, images, age):
        embedding = create_model("lenet5", num_classes=0, name="backbone")(images)
        return nn.Dense(2)(jnp.concatenate([embedding, age], axis=-1))


module = ImagesAndAge()
own = jax.jit(module.init)(jax.random.key(0), digits, jnp.ones((4, 1)))
assert module.apply(own, digits, jnp.ones((4, 1))).shape == (4, 2)

# %% [markdown]
# ## Activations by name
#
# The names are torch's.

# %%
maps = features(model, variables, images, ["layer1", "layer3"])
print({name: value.shape for name, value in maps.items()})
assert maps["layer3"].shape == (2, 24, 24, 64)

# %% [markdown]
# ## NNX
#
# The bridge makes a network an NNX module: it holds its variables, and running statistics are
# updated in place.

# %%
net = nnx.bridge.ToNNX(small, rngs=nnx.Rngs(0))
net.lazy_init(digits)
optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
pictures = jax.random.normal(jax.random.key(2), (10, 28, 28, 1))
labels = jnp.arange(10)


@nnx.jit
def train_step(net, optimizer):
    def loss(net):
        logits = net(pictures, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradients)
    return value


losses = [float(train_step(net, optimizer)) for _ in range(30)]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
assert losses[-1] < losses[0] / 2
