"""Figures show the names of classes, runs and files letter for letter."""

import io

import matplotlib.cbook
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from flaxnets import dense
from flaxnets.recipes import Preprocessing
from flaxnets.runs.evaluation import Example, draw_worst
from flaxnets.runs.figures import (
    draw_batch,
    draw_confusion,
    draw_grid,
    draw_learning_curve,
    literal,
)
from tools import show_augmentation

NAMES = ("$5_$10", r"\$1\$", "_$x", "caf\udce9")  # the last: a folder named in Latin-1
SHOWN = ("$5_$10", r"\$1\$", "_$x", "caf?")


def drawn(text, **options):
    figure = Figure()
    figure.text(0, 0.5, text, **options)
    figure.savefig(content := io.BytesIO(), dpi=50)
    return np.asarray(Image.open(content))


@pytest.mark.parametrize("index", range(4))
def test_a_name_is_drawn_letter_for_letter(index):
    name, shown = NAMES[index], SHOWN[index]
    np.testing.assert_array_equal(drawn(literal(name)), drawn(shown, parse_math=False))


def texts(figure):
    figure.savefig(io.BytesIO())  # draws everything
    words = [text.get_text() for text in figure.findobj(Text)]
    assert not any(map(matplotlib.cbook.is_math_text, words))
    ticks = "-\N{MINUS SIGN}0123456789."
    return [text.replace(r"\$", "$") for text in words if text.strip(ticks)]


def test_the_figures_of_a_run_name_classes_as_they_are():
    images = np.zeros((4, 5, 5, 1), np.uint8)
    assert set(texts(draw_grid(list(images), NAMES))) == set(SHOWN)
    batch = {"image": images, "label": np.arange(4)}
    assert set(texts(draw_batch(batch, NAMES, Preprocessing()))) == set(SHOWN)
    worst = [Example(1.0, images[0], label=0, output=1), Example(0.5, images[0], 2, 2)]
    assert texts(draw_worst(worst, NAMES)) == ["\\$1\\$\nnot $5_$10 (1.0)", "_$x (0.5)"]


def test_the_figure_of_a_map_names_classes_as_they_are():
    classes = [(index, f"{name} (1)") for index, name in enumerate(NAMES)]
    heat, best = np.ones((2, 2)) / 2, np.arange(4).reshape(2, 2)
    pixels = np.zeros((5, 5, 1), np.uint8)
    words = texts(dense.draw_maps(pixels, NAMES[0], heat, best, classes, (0, 5, 5, 0)))
    assert {"probability of $5_$10", *(f"{name} (1)" for name in SHOWN)} <= set(words)


def test_figures_in_files_are_drawn_of_any_name(tmp_path):
    rows = [{"epoch": 1, "train_loss": 2.0, "test_loss": 1.0}]
    draw_learning_curve(rows, tmp_path / "curve.png", "lenet5 on folder:$5_$10")
    labels = np.arange(4)
    draw_confusion(tmp_path / "confusion.png", labels, labels, NAMES, "runs/$5_$10")
    for split in ("train", "val"):
        for name in NAMES[:3]:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.png")
    show_augmentation.main(
        ["--dataset", f"folder:{tmp_path}", "--out", str(tmp_path / "grid.png"), "--columns", "3",
         "--rows", "1"]
    )  # fmt: skip
    for name in ("curve", "confusion", "grid"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
