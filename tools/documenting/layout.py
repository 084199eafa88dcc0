"""Places of the boxes of a unit, rank by rank, so that few lines cross (Sugiyama, Tagawa & Toda
1981, "Methods for Visual Understanding of Hierarchical System Structures").
"""

import dataclasses
import itertools

from documenting.graph import Unit

CHARACTER, HEIGHT, GAP, ROW = 6.4, 22, 12, 40  # pixels


@dataclasses.dataclass
class Point:
    """A box, or a place where a line passes a rank (`box` is None); its centre is `x`."""

    rank: int
    width: float
    box: int | None = None
    x: float = 0.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """The points of a unit and the lines between them, each a list of points' numbers; point 0 is
    the unit's input, of rank 0, and the last is its output.
    """

    points: list[Point]
    lines: list[list[int]]

    @property
    def ranks(self) -> int:
        return self.points[-1].rank

    @property
    def left(self) -> float:
        return min(point.x - point.width / 2 for point in self.points)

    @property
    def right(self) -> float:
        return max(point.x + point.width / 2 for point in self.points)


def width_of(label: str) -> float:
    return max(26.0, CHARACTER * len(label) + 14)


def place(unit: Unit) -> Layout:
    """Return where the boxes of a unit lie, its input and its output at x = 0."""
    ranks = [0]
    for inputs in unit.inputs:
        ranks.append(1 + max(ranks[i + 1] for i in inputs))
    points = [Point(0, 0.0)]
    points += [
        Point(rank, width_of(box.label), number)
        for number, (rank, box) in enumerate(zip(ranks[1:], unit.boxes, strict=True))
    ]
    output, passing, lines = points.pop(), [], []
    last = len(points)  # the output's number, while the points of lines are added after it
    for number, inputs in enumerate(unit.inputs, 1):
        for i in inputs:
            between = range(ranks[i + 1] + 1, ranks[number])
            first = last + 1 + len(passing)
            passing += [Point(rank, 8.0) for rank in between]
            lines.append([i + 1, *range(first, first + len(between)), number])
    points = [*points, output, *passing]
    _arrange(points, lines, output.rank)
    # The output comes last.
    order = [i for i in range(len(points)) if i != last] + [last]
    where = {old: new for new, old in enumerate(order)}
    return Layout([points[i] for i in order], [[where[i] for i in line] for line in lines])


def _arrange(points: list[Point], lines: list[list[int]], depth: int) -> None:
    """Set the points' x. Points that follow one another without a branch are a chain and have one
    x; chains stand in one order, by the mean place of their neighbours, as near as they may.
    """
    above: dict[int, list[int]] = {i: [] for i in range(len(points))}
    below: dict[int, list[int]] = {i: [] for i in range(len(points))}
    for line in lines:
        for a, b in itertools.pairwise(line):
            above[b].append(a)
            below[a].append(b)
    chains: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: points[i].rank):
        if 0 < points[i].rank < depth:
            before = [c for c in chains if below[c[-1]] == [i] and above[i] == [c[-1]]]
            if before:
                before[0].append(i)
            else:
                chains.append([i])
    chains.sort(key=lambda chain: chain[0])

    def wanted(chain: list[int]) -> float:
        neighbours = [*above[chain[0]], *below[chain[-1]]]
        return sum(points[i].x for i in neighbours) / len(neighbours)

    def move(chain: list[int], x: float) -> None:
        for i in chain:
            points[i].x = x

    def order(chain: list[int]) -> tuple[bool, float]:
        """Lines without a box, shortcuts, stand on the right, the longest last."""
        is_line = all(points[i].box is None for i in chain)
        return is_line, len(chain) if is_line else wanted(chain)

    for _ in range(4):
        for number, chain in enumerate(chains):
            move(chain, number - (len(chains) - 1) / 2)
        chains.sort(key=order)
    for number, chain in enumerate(chains):
        edges = [_distance(points, c, chain) + points[c[0]].x for c in chains[:number]
                 if _beside(points, c, chain)]  # fmt: skip
        move(chain, max(edges, default=0.0))
    for number, chain in reversed(list(enumerate(chains))):
        edges = [points[c[0]].x - _distance(points, chain, c) for c in chains[number + 1 :]
                 if _beside(points, c, chain)]  # fmt: skip
        move(chain, max(points[chain[0]].x, min([*edges, wanted(chain)])))
    inner = [point for point in points if point.box is not None and 0 < point.rank < depth]
    weight = sum(point.width for point in inner) or 1.0
    middle = sum(point.x * point.width for point in inner) / weight
    for point in points:
        point.x = round(point.x - middle, 1) if 0 < point.rank < depth else 0.0


def _beside(points: list[Point], a: list[int], b: list[int]) -> bool:
    """Return whether two chains share a rank."""
    return points[a[0]].rank <= points[b[-1]].rank and points[b[0]].rank <= points[a[-1]].rank


def _distance(points: list[Point], a: list[int], b: list[int]) -> float:
    return sum(max(points[i].width for i in chain) for chain in (a, b)) / 2 + GAP
