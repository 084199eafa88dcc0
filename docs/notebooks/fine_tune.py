# %% [markdown]
# # Fine-tune a network on your own pictures
#
# Few pictures are enough if the features are there already. Here a small network first learns the
# digits 0 to 7, then two new classes, 8 and 9, from ten pictures each. With your own pictures, the
# steps are the same; the last cell has the command.

# %%
import pathlib
import tempfile

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import flaxnets
from flaxnets.train import main as train

folder = pathlib.Path(tempfile.mkdtemp())
digits = load_digits()
images = (digits.images * 255 / 16).astype(np.uint8)

# %% [markdown]
# ## Pictures in folders
#
# One folder for each class, below `train` and `val`.


# %%
def write(name, classes, per_class):
    """Write pictures of some classes: `per_class` for training, up to 40 for validation."""
    for digit in classes:
        chosen = np.flatnonzero(digits.target == digit)
        for split, indices in (("train", chosen[:per_class]), ("val", chosen[-40:])):
            path = folder / name / split / f"digit {digit}"
            path.mkdir(parents=True)
            for index in indices:
                Image.fromarray(images[index]).resize((28, 28)).save(path / f"{index}.png")


write("many", range(8), 100)
write("few", (8, 9), 10)

# %% [markdown]
# ## Learn the features
#
# `train` is what `python -m flaxnets.train` calls with the words of its command line.

# %%
common = ["--arch", "lenet5", "--image-size", "28", "--resize", "28", "--flip", "none"]
common += ["--pca-std", "0"]
many = ["--dataset", f"folder:{folder}/many", "--workdir", f"{folder}/runs/many"]
train([*common, *many, "--epochs", "6", "--batch-size", "40"])
first = flaxnets.pretrained(folder / "runs/many")
print(first, first.card.accuracy)
assert first.card.accuracy["top1"] > 0.7

# %% [markdown]
# ## A new head on frozen features
#
# `--init-from` takes a file of weights (or the name of published ones). The last layer starts
# afresh, because the classes are new; `--freeze` keeps the convolutions as they are.

# %%
first.save(folder / "many.safetensors")
few = ["--dataset", f"folder:{folder}/few", "--workdir", f"{folder}/runs/few"]
start = ["--init-from", f"{folder}/many.safetensors", "--freeze", "features.*"]
train([*common, *few, *start, "--epochs", "8", "--batch-size", "16", "--learning-rate", "0.01"])
second = flaxnets.pretrained(folder / "runs/few")
print(second, second.card.accuracy)
assert second.card.accuracy["top1"] > 0.7

# %% [markdown]
# The frozen features have kept their bits:

# %%
for name, weights in flaxnets.to_torch(first.variables).items():
    if name.startswith("features."):
        np.testing.assert_array_equal(weights, flaxnets.to_torch(second.variables)[name])

# %% [markdown]
# ## Use it, and save it
#
# One file has the network, its preprocessing and its classes.

# %%
second.save(folder / "eight_or_nine.safetensors")
network = flaxnets.pretrained(folder / "eight_or_nine.safetensors")
picture = next((folder / "few/val/digit 9").glob("*.png"))
print(network.classify(picture, top=2))
assert network.classes == ("digit 8", "digit 9")
finer = network.with_head(
    3, jax.random.key(0), classes=["seven", "eight", "nine"]
)  # one more class
assert finer(picture).shape == (3,)

# %% [markdown]
# With photographs and published weights it is one command:
#
# ```bash
# python -m flaxnets.train --arch vgg16 --dataset folder:my_pictures \
#     --init-from IMAGENET1K_V1 --freeze "features.*"
# ```
