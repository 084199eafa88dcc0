"""Draw a network as a picture (SVG): its layers, branches and shortcuts, the sizes of its maps.

    python tools/draw_network.py --arch resnet50 --out resnet50.svg

What is drawn is read off a trace of the network; nothing is computed.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib

import tyro
from documenting.drawing import draw

from flaxnets import create_model
from flaxnets.terminal import arguments, one_sentence_errors


@dataclasses.dataclass(frozen=True)
class Options:
    arch: str
    """Name of a network: flaxnets.list_models()."""
    out: pathlib.Path
    """File of the drawing, an SVG."""


def main(options: Options) -> None:
    options.out.write_text(draw(options.arch, create_model(options.arch)))
    print(options.out)


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
