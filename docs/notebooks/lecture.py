# %% [markdown]
# # From LeNet to ResNeXt, slide by slide
#
# Each slide is one idea, in the code of the network that had it. Nothing here needs weights or a
# GPU; the last slides train a small network on digits and slide it over a larger image.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from flaxnets import create_model
from flaxnets.inference.dense import convolutionize
from flaxnets.summary import summarize, totals


def count(arch, **fields):
    """Return the layers of a network and its parameters and multiply-adds, in millions."""
    model = create_model(arch, **fields)
    layers = summarize(model, model.input_shape)
    sums = totals(layers)
    return layers, sums["parameters"] / 1e6, sums["multiply_adds"] / 1e6


# %% [markdown]
# ## LeNet-5 (1998): convolve, pool, repeat
#
# A convolution sees a small neighbourhood and uses the same weights everywhere; pooling makes the
# map smaller. Two rounds of that, then linear layers.
#
# ![LeNet-5 from its input to its output](../images/networks/lenet5.svg)

# %%
layers, parameters, multiply_adds = count("lenet5")
for layer in layers:
    print(f"{layer.name:20} {layer.kind:8} {layer.output_shape!s:16} {layer.parameters:7,}")
print(f"{parameters:.3f} million parameters, {multiply_adds:.2f} million multiply-adds")
assert round(parameters * 1e6) == 44_426

# %% [markdown]
# ## AlexNet (2012): the same idea, a thousand times larger
#
# Eight layers, ReLU instead of tanh, dropout, two GPUs. Nearly all parameters are in the linear
# layers, nearly all work is in the convolutions.
#
# ![AlexNet from its input to its output](../images/networks/alexnet_2012.svg)

# %%
layers, parameters, _ = count("alexnet_2012")
linear = sum(layer.parameters for layer in layers if layer.kind == "Linear") / 1e6
work = sum(layer.multiply_adds for layer in layers if layer.kind == "Conv")
print(f"{linear:.1f} of {parameters:.1f} million parameters are in linear layers")
assert linear / parameters > 0.9
assert work / sum(layer.multiply_adds for layer in layers) > 0.9

# %% [markdown]
# ## VGG (2014): only 3x3, but deep
#
# Two 3x3 convolutions see 5x5 pixels, three see 7x7, with fewer weights and more nonlinearities.

# %%
channels = 64
seven, three_of_three = 7 * 7 * channels**2, 3 * (3 * 3 * channels**2)
print(f"one 7x7: {seven:,} weights; three 3x3: {three_of_three:,}")
assert three_of_three < 0.56 * seven
for arch in ("vgg11", "vgg16", "vgg19"):
    layers, parameters, multiply_adds = count(arch)
    print(f"{arch}: {len(layers)} layers, {parameters:.0f} M, {multiply_adds / 1e3:.1f} G")
    assert len(layers) == int(arch[3:])

# %% [markdown]
# ## Network in network and GoogLeNet (2014): 1x1 convolutions
#
# A 1x1 convolution mixes the channels of one position. Before a 3x3 convolution it leaves fewer of
# them, which is cheaper. GoogLeNet's modules do that in parallel branches, and a mean replaces the
# large linear layers.
#
# ![GoogLeNet from its input to its output](../images/networks/googlenet.svg)

# %%
_, alexnet, _ = count("alexnet_2012")
_, googlenet, work = count("googlenet", aux_logits=False)
print(f"GoogLeNet: {googlenet:.1f} M parameters, {work / 1e3:.2f} G; AlexNet {alexnet:.0f} M")
assert alexnet / googlenet > 9

# %% [markdown]
# ## Batch normalisation (2015)
#
# Each channel gets mean 0 and deviation 1 over the batch, then a learnt scale and shift. In
# evaluation it uses running averages: one multiplication, which folds into the convolution.

# %%
model = create_model("resnet20_cifar")
images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3)) * 3 + 1
variables = jax.jit(model.init)(jax.random.key(1), images)
_, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
before, after = (tree["batch_stats"]["bn1"]["mean"] for tree in (variables, updates))
print("running means move by a tenth of the way:", np.abs(after - before).max())

# %% [markdown]
# ## ResNet (2015): learn the difference
#
# A block adds its input to its output: `y = x + f(x)`. The gradient passes through the sum, so that
# hundreds of layers train. If the last norm of each block starts at zero, the network starts as an
# identity.
#
# ![ResNet-50 from its input to its output](../images/networks/resnet50.svg)

# %%
for arch in ("resnet18", "resnet34", "resnet50"):
    layers, parameters, multiply_adds = count(arch)
    weighted = [x for x in layers if x.kind != "BatchNorm" and "downsample" not in x.name]
    print(f"{arch}: {len(weighted)} layers, {parameters:.1f} M, {multiply_adds / 1e3:.1f} G")
    assert len(weighted) == int(arch[6:])

# %% [markdown]
# ## Wide, dense, grouped (2016)
#
# Three answers to "what else than depth": wider layers (wide ResNet), every layer sees all earlier
# ones (DenseNet), and many thin paths in parallel, as one grouped convolution (ResNeXt). ResNeXt-50
# is as large as ResNet-50.

# %%
sizes = {arch: count(arch)[1] for arch in ("resnet50", "resnext50_32x4d", "densenet121")}
print({arch: f"{millions:.1f} M" for arch, millions in sizes.items()})
assert abs(sizes["resnet50"] - sizes["resnext50_32x4d"]) < 1

# %% [markdown]
# ## Train one: LeNet-5 on digits
#
# Cross entropy and SGD with momentum, in plain JAX.

# %%
digits = load_digits()
pixels = jax.image.resize(
    jnp.asarray(digits.images)[..., None] / 8 - 1, (1797, 28, 28, 1), "linear"
)
labels = jnp.asarray(digits.target)
model = create_model("lenet5")
variables = jax.jit(model.init)(jax.random.key(0), pixels[:1])
optimizer = optax.sgd(0.05, momentum=0.9)
state = optimizer.init(variables)


@jax.jit
def step(variables, state, images, labels):
    def loss(variables):
        logits = model.apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(variables)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(variables, updates), state, value


random = np.random.default_rng(0)
for _ in range(150):
    batch = random.integers(0, 1437, 64)
    variables, state, value = step(variables, state, pixels[batch], labels[batch])
accuracy = (model.apply(variables, pixels[1437:]).argmax(-1) == labels[1437:]).mean()
print(f"loss {value:.3f}; {accuracy:.1%} of {1797 - 1437} test digits")
assert accuracy > 0.85

# %% [markdown]
# ## A classifier is a filter
#
# The first linear layer reads a patch of the map: it is a convolution as large as the map. Slide it
# over a larger image, and the same weights give a map of scores. Three digits side by side:

# %%
row = jnp.concatenate([pixels[1500], pixels[1501], pixels[1502]], axis=1)[None]  # (1, 28, 84, 1)
scores = convolutionize(model).apply(variables, row)  # (1, 1, W', 10)
print("map of scores:", scores.shape)
alone = model.apply(variables, pixels[1500:1503])
in_the_row = scores[0, 0, [0, 7, 14]]  # 4 pixels apart: positions 0, 28 and 56
np.testing.assert_allclose(in_the_row, alone, rtol=1e-3, atol=1e-3)

# %% [markdown]
# The map at positions 0, 28 and 56 is what the network says of each digit alone: nothing was
# converted. `flaxnets.pretrained("vgg16", "IMAGENET1K_V1").dense("street.jpg")` does this for
# photographs.
