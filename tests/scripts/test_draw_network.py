"""Drawings of networks: what the graph holds, where its boxes lie, whether the pages show it."""

import itertools
import xml.etree.ElementTree as ET

import draw_network
import pytest
import write_docs
from documenting.drawing import DRAWN, draw, number_text
from documenting.graph import DOT, MINUS, TIMES, boxes, repeated, trace, units
from documenting.layout import GAP, place

from flaxnets import create_model
from flaxnets.models.base import Model
from flaxnets.models.densenet import DenseNet
from flaxnets.models.highway import HighwayMLP
from flaxnets.models.resnet import Bottleneck, ResNet
from scripts import ROOT

NAMES = sorted(name for names in DRAWN.values() for name in names)
TIMES = TIMES.strip()


def parts(model: Model) -> list[tuple[list[list[str]], int]]:
    """Return the labels of a network's units as they are drawn, with how often they repeat."""
    drawn = []
    for group, count in repeated(units(boxes(trace(model)))):
        once = group[: len(group) // count]
        drawn.append(([[box.label for box in unit.boxes] for unit in once], count))
    return drawn


def test_a_residual_network_is_a_chain_of_blocks_with_shortcuts():
    model = ResNet(Bottleneck, (1, 3), num_classes=10)
    bn, relu = f"{DOT}BN", f"{DOT}BN{DOT}ReLU"
    end = f"+{DOT}ReLU"
    assert parts(model) == [
        ([["7x7 conv, 64, /2" + relu]], 1),
        ([["3x3 max pool, /2"]], 1),
        ([["1x1 conv, 64" + relu, "3x3 conv, 64" + relu, "1x1 conv, 256" + bn,
           "1x1 conv, 256" + bn, end]], 1),
        ([["1x1 conv, 128" + relu, "3x3 conv, 128, /2" + relu, "1x1 conv, 512" + bn,
           "1x1 conv, 512, /2" + bn, end]], 1),
        ([["1x1 conv, 128" + relu, "3x3 conv, 128" + relu, "1x1 conv, 512" + bn, end]], 2),
        ([["mean over the map"]], 1),
        ([["linear, 10"]], 1),
    ]  # fmt: skip
    block = units(boxes(trace(model)))[4]
    assert block.inputs == ((-1,), (0,), (1,), (2, -1))  # the sum's second input is the block's
    assert block.boxes[-1].shape == (28, 28, 512)


def test_a_dense_block_takes_one_map_more_in_each_layer():
    model = DenseNet((3,), growth_rate=4, small_images=True, input_shape=(32, 32, 3))
    before = f"BN{DOT}ReLU"
    assert parts(model) == [
        ([["3x3 conv, 8"]], 1),
        ([[before, f"1x1 conv, 16{DOT}{before}", "3x3 conv, 4", "concatenate"]], 3),
        ([[before]], 1),
        ([["mean over the map"]], 1),
        ([["linear, 1000"]], 1),
    ]
    assert all(unit.inputs[-1] == (-1, 2) for unit in units(boxes(trace(model)))[1:4])


def test_a_highway_layer_multiplies_by_its_gate_and_what_the_gate_leaves():
    (_, (gated, count), output) = parts(HighwayMLP(depth=4))
    assert count == 3
    assert gated == [[f"linear, 50{DOT}ReLU", f"linear, 50{DOT}sigmoid", TIMES, f"1 {MINUS}",
                      TIMES, "+"]]  # fmt: skip
    assert output == ([["linear, 10"]], 1)


@pytest.mark.parametrize("name", ["lenet5", "resnet20_cifar", "squeezenet1_0"])
def test_a_drawing_is_what_the_code_says(name, tmp_path):
    drawn = (ROOT / write_docs.drawing(name)).read_text()
    assert draw(name, create_model(name)) == drawn, "python tools/write_docs.py --drawings"
    draw_network.main(draw_network.Options(name, tmp_path / "drawn.svg"))
    assert (tmp_path / "drawn.svg").read_text() == drawn


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_has_all_parameters_within_its_frame(name):
    root = ET.fromstring((ROOT / write_docs.drawing(name)).read_text())
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    space = "{http://www.w3.org/2000/svg}"
    for rect in root.iter(f"{space}rect"):
        x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert left <= x <= left + width + 1 - float(rect.attrib["width"])
        assert top <= y <= top + height + 1 - float(rect.attrib["height"])
    counts = write_docs.read_counts()[name]
    sums = [number_text(counts[key]) for key in ("parameters_without_auxiliary", "multiply_adds")]
    assert "".join(root.itertext()).count(f"{sums[0]} parameters, {sums[1]} multiply-adds") == 1


def test_boxes_do_not_overlap_and_lines_go_down_rank_by_rank():
    drawn = boxes(trace(ResNet(Bottleneck, (1, 1), num_classes=10)))
    for unit in units(drawn):
        layout = place(unit)
        assert sorted(point.box for point in layout.points if point.box is not None) == [
            *range(len(unit.boxes))
        ]
        for a, b in itertools.combinations(layout.points, 2):
            if a.rank == b.rank:
                assert abs(a.x - b.x) >= (a.width + b.width) / 2 + GAP - 0.1
        for line in layout.lines:
            ranks = [layout.points[number].rank for number in line]
            assert ranks == list(range(ranks[0], ranks[-1] + 1))
        assert layout.points[0].x == layout.points[-1].x == 0
