"""A network's graph as a picture: SVG, the same text for the same network."""

import html
import itertools
import math

from documenting.graph import TIMES, Box, Unit, boxes, repeated, trace, units
from documenting.layout import GAP, HEIGHT, ROW, Layout, place, width_of
from flaxnets.models import FAMILIES
from flaxnets.models.base import Model

# The networks that the page of a family shows.
DRAWN: dict[str, tuple[str, ...]] = {family: (next(iter(v)),) for family, v in FAMILIES.items()} | {
    "lenet": ("lenet5", "lenet5_1998"),
    "alexnet": ("alexnet", "alexnet_2012"),
    "vgg": ("vgg16",),
    "inception_resnet": ("inception_resnet_v1", "inception_resnet_v2"),
    "resnet": ("resnet18", "resnet50"),
    "resnet_cifar": ("resnet20_cifar", "resnext29_8x64d_cifar"),
    "preact_resnet": ("preact_resnet110_cifar", "preact_resnet164_cifar"),
    "densenet": ("densenet121", "densenet_40_12"),
    "mobilenet_v3": ("mobilenet_v3_large", "mobilenet_v3_small"),
    "regnet": ("regnet_x_400mf", "regnet_y_400mf"),
    "efficientnet": ("efficientnet_b0", "efficientnet_v2_s"),
    "swin": ("swin_t", "swin_v2_t"),
    "highway": ("highway11_cifar", "highway_mlp"),
    "mlp": ("softmax_regression", "mlp"),
}
COLOURS = {
    "input": "#ffffff", "layer": "#cfe3f7", "attention": "#fbdcb8", "pool": "#d5ecd0",
    "norm": "#e9e9ee", "activation": "#e9e9ee", "join": "#ffffff",
}  # fmt: skip
LINEAR = "#e3d5f1"
BANDS = ("#f6f8fa", "#ffffff")
# Pixels: around the picture, for its title, the least height of a band, for how often units repeat.
MARGIN, TITLE, LEAST, REPEATS = 10, 34, 58, 38
STYLE = (
    "text{font:11.5px system-ui,sans-serif;fill:#1c2733}"
    ".m{text-anchor:middle}.s{font-size:10.5px;fill:#5b6875}"
    ".k{font:10px ui-monospace,monospace;fill:#5b6875}.b{font-weight:600}"
    ".l{fill:none;stroke:#5b6875;stroke-width:1.2}.x{stroke:#5b6875;stroke-width:1}"
    ".r{fill:none;stroke:#9aa7b4;stroke-dasharray:4 3}"
)


def draw(name: str, model: Model) -> str:
    """Return the drawing of a network from top to bottom: on the left its maps, with the parameters
    and multiply-adds of the layers that make them, on the right the layers' names.
    """
    return _Drawing(name, boxes(trace(model))).text()


def size_text(shape: tuple[int, ...]) -> str:
    """Return a shape in words; a map of one position is a row of features."""
    if shape[:-1] == (1, 1):
        shape = shape[-1:]
    return TIMES.join(map(str, shape))


def number_text(value: int) -> str:
    """Return a number with three digits and its unit: thousand, million or thousand million."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return str(value)


def keys(group: list[Unit]) -> str:
    """Return what the names of a group's layers have in common, and where they end."""
    names = [name for unit in group for box in unit.boxes for name in box.names]
    if not names:
        return ""
    common = _common(names)
    if len(names) == 2 and not common:
        return ", ".join(names)
    if not common:  # layers that the module names one after another
        return f"{names[0]} \u2026 {names[-1]}"
    return common if len(set(names)) > 1 else names[0]


def _common(names: list[str]) -> str:
    parts = [name.split(".") for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    shared = [column[0] for column in same]
    rest = [part[len(shared)] if len(part) > len(shared) else "" for part in parts]
    if len(set(rest)) > 1 and shared and rest[0].isdigit() and rest[-1].isdigit():
        return ".".join([*shared, f"{rest[0]}\u2026{rest[-1]}"])
    return ".".join(shared)


class _Drawing:
    """The parts of a picture, from top to bottom; x = 0 is the middle of the network."""

    def __init__(self, name: str, drawn: list[Box]):
        self.below: list[str] = []  # bands and frames
        self.lines: list[str] = []
        self.above: list[str] = []
        self.input = drawn[0]
        self.name = name
        self.groups = list(repeated(units(drawn)))
        layouts = {unit.signature(): place(unit) for group, _ in self.groups for unit in group}
        self.left = min(layout.left for layout in layouts.values()) - GAP
        self.right = max(layout.right for layout in layouts.values()) + GAP
        self.layouts = layouts
        self.repeats = REPEATS if any(count > 1 for _, count in self.groups) else 0
        self.total = sum(box.parameters for box in drawn), sum(x.multiply_adds for x in drawn)

    def text(self) -> str:
        names = max((len(keys(group)) for group, _ in self.groups), default=0)
        left, right = self.left - 118, self.right + self.repeats + 6.2 * names + 8
        y = TITLE + 8 + HEIGHT
        input_width = width_of(size_text(self.input.shape) + " input")
        self._box(0, TITLE + 8, input_width, f"input {size_text(self.input.shape)}", "input")
        band: list[tuple[list[Unit], int, float, float]] = []
        bands = 0
        for index, (group, count) in enumerate(self.groups):
            top, y = y, self._group(group, count, y)
            band.append((group, count, top, y))
            after = self.groups[index + 1 : index + 2]
            if not after or _positions(after[0][0][0]) != _positions(group[-1]):
                last_box, y = y, self._band(band, y, left, right, bands)
                if after and y > last_box:
                    self.lines.append(f'<path class="l" d="M0 {last_box:g}V{y:g}"/>')
                band, bands = [], bands + 1
        height = y + MARGIN
        left, right = left - MARGIN, max(right, left + 6.6 * 58) + MARGIN
        parameters, multiply_adds = map(number_text, self.total)
        title = (
            f'<text x="{left + MARGIN:.0f}" y="20"><tspan class="b">{self.name}</tspan>'
            f'<tspan class="s" dx="8">{parameters} parameters, {multiply_adds} multiply-adds'
            "</tspan></text>"
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {right - left:.0f} '
            f'{height:.0f}" width="{right - left:.0f}" height="{height:.0f}" role="img">',
            f"<title>{self.name}, from its input to its output</title>",
            f"<style>{STYLE}</style>",
            f'<rect x="{left:.0f}" width="{right - left:.0f}" height="{height:.0f}" rx="6" '
            'fill="#ffffff"/>',
            *self.below, *self.lines, *self.above, title, "</svg>",
        ]) + "\n"  # fmt: skip

    def _box(self, x: float, y: float, width: float, label: str, kind: str) -> None:
        colour = LINEAR if label.startswith("linear") else COLOURS[kind]
        radius = HEIGHT / 2 if kind == "join" else 4
        self.above.append(
            f'<rect class="x" x="{x - width / 2:.1f}" y="{y:.0f}" width="{width:.1f}" '
            f'height="{HEIGHT}" rx="{radius:g}" fill="{colour}"/>'
            f'<text class="m" x="{x:.1f}" y="{y + 15:.0f}">{html.escape(label)}</text>'
        )

    def _group(self, group: list[Unit], count: int, y: float) -> float:
        """Draw a run of units, once if they repeat, and return where it ends."""
        top = y
        once = group[: len(group) // count]
        for unit in once:
            y = self._unit(unit, self.layouts[unit.signature()], y)
        if count > 1:
            layouts = [self.layouts[unit.signature()] for unit in once]
            left = min(layout.left for layout in layouts) - 7
            right = max(layout.right for layout in layouts) + 7
            self.below.append(
                f'<rect class="r" x="{left:.1f}" y="{top + 9:.0f}" width="{right - left:.1f}" '
                f'height="{y - top - 2:.0f}" rx="6"/>'
                f'<text class="b" x="{right + 4:.1f}" y="{(top + y) / 2 + 7:.0f}">'
                f"{TIMES.strip()} {count}</text>"
            )
        return y

    def _unit(self, unit: Unit, layout: Layout, y: float) -> float:
        """Draw a unit below its input, whose lower edge is at `y`; return its own lower edge."""
        for point in layout.points[1:]:
            if point.box is not None:
                box = unit.boxes[point.box]
                self._box(point.x, y + point.rank * ROW - HEIGHT, width_of(box.label), box.label,
                          box.kind)  # fmt: skip
        for line in layout.lines:
            start = layout.points[line[0]]
            x, bottom = start.x, y + start.rank * ROW
            path = f"M{x:g} {bottom:g}"
            for number in line[1:]:
                point = layout.points[number]
                upper = y + point.rank * ROW - HEIGHT
                middle = (bottom + upper) / 2
                path += f"C{x:g} {middle:g} {point.x:g} {middle:g} {point.x:g} {upper:g}"
                x, bottom = point.x, upper
                if point.box is None:
                    bottom += HEIGHT
                    path += f"V{bottom:g}"
            self.lines.append(f'<path class="l" d="{path}"/>')
        return y + layout.ranks * ROW

    def _band(
        self, band: list[tuple[list[Unit], int, float, float]], end: float, left: float,
        right: float, number: int,
    ) -> float:  # fmt: skip
        """Draw what lies under the units of one size of map, and return where it ends."""
        top = band[0][2] + 9
        end = max(end, top + LEAST - 9)
        every = [box for group, *_ in band for unit in group for box in unit.boxes]
        size = band[0][0][0].boxes[-1].shape[:-1]
        *_, last = (box for box in every if box.shape[:-1] == size)
        parameters = sum(box.parameters for box in every)
        multiply_adds = sum(box.multiply_adds for box in every)
        self.below.insert(
            number,
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" '
            f'height="{end + 9 - top:.0f}" fill="{BANDS[number % 2]}"/>',
        )
        texts = [("b", size_text(last.shape))]
        if parameters:
            texts.append(("s", f"{number_text(parameters)} parameters"))
        if multiply_adds:
            texts.append(("s", f"{number_text(multiply_adds)} multiply-adds"))
        for row, (kind, text) in enumerate(texts):
            self.above.append(
                f'<text class="{kind}" x="{left + 6:.0f}" y="{top + 18 + 15 * row:.0f}">'
                f"{text}</text>"
            )
        for group, _, upper, lower in band:
            if text := keys(group):
                self.above.append(
                    f'<text class="k" x="{self.right + self.repeats:.0f}" '
                    f'y="{(upper + lower) / 2 + 12:.0f}">{html.escape(text)}</text>'
                )
        return end


def _positions(unit: Unit) -> int:
    """Return how many positions the map has that a unit gives, in windows or not."""
    return math.prod(unit.boxes[-1].shape[:-1])
