"""Draw the picture of README.md: what the demo network sees in a photograph, and where.

    python tools/draw_demo.py --out docs/images/demo.jpg

The network is EfficientNet-Lite0 with the weights of the extra `demo`; the photograph comes with
scikit-learn. The picture shows the photograph, the best classes, and the dense map of the best one.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from flaxnets import pretrained
from flaxnets.inference.options import DEMO
from flaxnets.terminal import arguments, one_sentence_errors


@dataclasses.dataclass(frozen=True)
class Options:
    out: pathlib.Path = pathlib.Path("demo.jpg")
    """Picture to write."""
    photo: str = "china.jpg"
    """Photograph of scikit-learn: china.jpg or flower.jpg."""
    scale: int = 2
    """Factor by which the photograph is enlarged for the dense map."""


def main(options: Options) -> None:
    network = pretrained(DEMO)
    photo = load_sample_image(options.photo)
    best = network.classify(photo, top=5)
    size = (photo.shape[1] * options.scale, photo.shape[0] * options.scale)
    larger = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))
    heat = np.asarray(jax.nn.softmax(network.dense(larger)))[..., best[0].index]

    figure = Figure((11, 2.6), layout="constrained")
    axes: Any = figure.subplots(1, 3, width_ratios=(1, 0.8, 1))
    extent = (0, photo.shape[1], photo.shape[0], 0)
    axes[0].imshow(photo, extent=extent)
    axes[0].set_title("photograph")
    names = [prediction.name for prediction in best][::-1]
    axes[1].barh(names, [100 * prediction.probability for prediction in best][::-1])
    axes[1].set_title("classes, per cent")
    axes[1].spines[["top", "right"]].set_visible(False)
    axes[2].imshow(photo, extent=extent)
    axes[2].imshow(heat, "inferno", extent=extent, alpha=0.6, vmin=0, interpolation="bilinear")
    axes[2].set_title(f"where: {best[0].name}")
    for axis in (axes[0], axes[2]):
        axis.set_axis_off()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=100)
    print(f"{options.out}: {', '.join(names[::-1])}; {heat.shape[0]}x{heat.shape[1]} cells")


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
