"""A network as a graph of layers, read off its trace: nothing is drawn by hand or computed.

Every layer's input and output are named in the trace (`checkpoint_name`). What lies between them,
such as sums, concatenations and pools, is read off the operations there.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from flaxnets.kernels.platform import plain
from flaxnets.models.base import Model
from flaxnets.summary import KERNELS, summarize

Shape = tuple[int, ...]
TIMES, MINUS, DOT = " \u00d7 ", "\u2212", " \u00b7 "
# Functions and operations that keep the shape, by the names that jax gives them.
ACTIVATIONS = {
    "relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "gelu": "GELU", "hard_swish": "hard swish",
    "hard_silu": "hard swish",
    "hard_sigmoid": "hard sigmoid", "sigmoid": "sigmoid", "logistic": "sigmoid", "tanh": "tanh",
}  # fmt: skip
BINS = "average pool"
JOINS = {
    "add": "+",
    "sub": MINUS,
    "mul": TIMES.strip(),
    "div": "/",
    "concatenate": "concatenate",
}
# Operations that give the factor of an array by itself: what the product is called, and its kind.
FACTORS = {
    "square": ("response norm", "norm"),
    "erf": ("GELU", "activation"),
    "erfc": ("GELU", "activation"),
}
# Modules by class: what they are called, and their kind.
NAMES = {
    "BatchNorm": ("BN", "norm"),
    "LayerNorm": ("LN", "norm"),
    "PReLU": ("PReLU", "activation"),
    "Subsampling": ("2x2 trainable subsampling, /2", "pool"),
    "PartialConv": ("5x5 conv of some channels each", "layer"),  # one convolution for each map
}


@dataclasses.dataclass
class Node:
    """A layer or an operation between layers, on one image."""

    label: str
    kind: str  # input, layer, attention, pool, norm, activation or join
    shape: Shape  # of its output, (H, W, C), (positions, C) or (C,)
    inputs: tuple[int, ...] = ()
    name: str = ""  # of the layer: its path, joined by dots
    parameters: int = 0
    multiply_adds: int = 0


def label_of(module: nn.Module) -> tuple[str, str]:
    """Return what a layer is called in a drawing, and its kind."""
    name, fields = type(module).__name__, vars(module)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    if name in NAMES:
        return NAMES[name]
    if name.endswith("Attention"):
        return words + (f", {fields['heads']} heads" if "heads" in fields else ""), "attention"
    features = fields.get("features", 0)
    if "kernel_size" not in fields:
        return f"{words}, {features}" if features else words, "layer"
    (height, width), (stride, _) = pair(fields["kernel_size"]), pair(fields["stride"])
    groups = fields.get("groups", 1)
    label = f"{height}x{width} "
    label += "depthwise" if groups == features > 1 else f"{words}, {features}"
    label += f", {groups} groups" if 1 < groups < features else ""
    return label + (f", /{stride}" if stride > 1 else ""), "layer"


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is drawn as one box: it multiplies, or has no parts."""
    params, name = module.variables.get("params", {}), type(module).__name__
    own = {leaf for leaf, value in params.items() if hasattr(value, "shape")}
    if name in NAMES or len(own) == len(params):
        return bool(params)
    return bool(own & KERNELS) or (bool(own) and name.endswith("Attention"))


class _Trace:
    """Nodes, made of the operations of a trace in their order.

    What a variable of the trace is: the number of a node, the path of a parameter, or None for a
    constant.
    """

    def __init__(self, layers: dict[str, Node], input_shape: Shape):
        self.layers = layers
        self.nodes = [Node("input", "input", input_shape)]
        self.entered: dict[str, list[Any]] = {}  # the inputs of a layer, by its number
        self.inside: set[str] = set()  # layers that have begun and not ended

    def run(self, jaxpr: Jaxpr, values: list[Any]) -> list[Any]:
        env = dict(zip(jaxpr.invars, values, strict=True))
        for eqn in jaxpr.eqns:
            inputs = [None if isinstance(v, Literal) else env.get(v) for v in eqn.invars]
            outputs = self.operation(eqn, inputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [None if isinstance(v, Literal) else env.get(v) for v in jaxpr.outvars]

    def operation(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        primitive, name = eqn.primitive.name, eqn.params.get("name")
        if primitive == "name" and name.startswith(("in ", "out ")):
            way, number = name.split()
            return [self.passage(way, number, inputs[0])]
        shape = eqn.outvars[0].aval.shape[1:]
        numbers = list(dict.fromkeys(value for value in inputs if isinstance(value, int)))
        if self.inside:  # a box does not show how it is computed
            return [numbers[0] if numbers else None] * len(eqn.outvars)
        if numbers and (name in ACTIVATIONS or primitive in ACTIVATIONS):
            label = ACTIVATIONS.get(name) or ACTIVATIONS[primitive]
            return [self.add(label, "activation", shape, numbers)]
        for value in eqn.params.values():
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr) and len(inner.invars) == len(inputs):
                return self.run(inner, inputs)
        value = self.value(eqn, inputs, numbers, shape)
        return [value] * len(eqn.outvars)

    def passage(self, way: str, number: str, value: Any) -> Any:
        """Enter or leave a layer: what lies between is not seen."""
        if way == "in":
            self.entered.setdefault(number, []).append(value)
            self.inside.add(number)
            return value
        self.inside.remove(number)
        inputs = tuple(i for i in dict.fromkeys(self.entered[number]) if isinstance(i, int))
        self.nodes.append(dataclasses.replace(self.layers[number], inputs=inputs))
        return len(self.nodes) - 1

    def add(self, label: str, kind: str, shape: Shape, inputs: list[int], **more: Any) -> int:
        (*_, last) = inputs
        if len(inputs) == 1 and self.nodes[last].label == label and kind == "pool":
            self.nodes[last].shape = shape  # the other axis of the same pool
            return last
        self.nodes.append(Node(label, kind, shape, tuple(inputs), **more))
        return len(self.nodes) - 1

    def value(self, eqn: Any, inputs: list[Any], numbers: list[int], shape: Shape) -> Any:
        """Return what an operation outside of all layers gives."""
        primitive, params = eqn.primitive.name, eqn.params
        names = [value for value in inputs if isinstance(value, str)]
        if not numbers:
            return names[0] if names else None
        if len(numbers) > 1:
            factors = [node for i in numbers if (node := self.nodes[i]).kind == "factor"]
            if primitive == "mul" and factors:
                label, kind = FACTORS[factors[0].label]
                return self.add(label, kind, shape, [*factors[0].inputs])
            return self.add(JOINS.get(primitive, primitive), "join", shape, numbers)
        if names and primitive in JOINS:
            place = inputs.index(names[0])
            leaf, size = names[0].rpartition(".")[2], eqn.invars[place].aval.size
            label = f"{JOINS[primitive]} {leaf.replace('_', ' ')}"
            more = {"name": names[0], "parameters": size}
            return self.add(label, "activation", shape, numbers, **more)
        before = self.nodes[numbers[0]]
        if before.kind == "factor":
            return numbers[0]
        if before.label == BINS and primitive == "transpose":
            before.shape = shape
        if before.label == "stack" and shape[:-1] == before.shape[:-2]:
            before.label, before.shape = "concatenate, shuffle channels", shape
        if primitive in FACTORS:
            return self.add(primitive, "factor", shape, numbers)
        if label := operation_label(primitive, params, eqn.invars[0].aval.shape, shape):
            return self.add(label, "pool", shape, numbers)
        if primitive == "sub" and inputs[0] is None:
            return self.add(f"1 {MINUS}", "activation", shape, numbers)
        return numbers[0]


def operation_label(primitive: str, params: Any, before: Shape, after: Shape) -> str | None:
    """Return what an operation on one array is called; None for one that only moves or scales."""
    if primitive.startswith("reduce_window"):
        window = params["window_dimensions"]
        word = "max" if primitive.endswith("max") else "average"
        stride = params["window_strides"][1]
        return f"{window[1]}x{window[2]} {word} pool" + (f", /{stride}" if stride > 1 else "")
    if primitive == "reduce_sum" and 1 in params["axes"] and before[1:-1] not in ((), (1, 1)):
        return "mean over the map"
    if primitive == "dot_general":
        return BINS
    if primitive == "pad" and after[-1] > before[-1]:
        return "zeros for new channels"
    if primitive == "slice" and any(step > 1 for step in params["strides"] or ()):
        return f"every {max(params['strides'])}nd pixel"
    if primitive == "transpose" and params["permutation"] == (0, 1, 2, 4, 3):
        return "shuffle channels"
    return None


def trace(model: Model) -> list[Node]:
    """Return the nodes of a network in evaluation, each after its inputs, the last its output."""
    counted = summarize(model, model.input_shape)
    layers: dict[str, Node] = {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not is_layer(module):
            return next_fun(*args, **kwargs)
        number, path = str(len(layers)), ".".join(module.path)
        layers[number] = Node("", "", ())  # the layers inside count on
        named = [checkpoint_name(x, f"in {number}") if hasattr(x, "aval") else x for x in args]
        output = next_fun(*named, **kwargs)
        (label, kind), shape = label_of(module), output.shape[1:]
        inside = [x for x in counted if x.name == path or x.name.startswith(f"{path}.")]
        layers[number] = Node(
            f"{label}{DOT}ReLU" if kwargs.get("relu") else label, kind, shape, name=path,
            parameters=sum(x.parameters for x in inside),
            multiply_adds=sum(x.multiply_adds for x in inside),
        )  # fmt: skip
        return checkpoint_name(output, f"out {number}")

    def forward(variables: Any, x: Any) -> Any:
        with nn.intercept_methods(record):
            return model.apply(variables, x)

    with plain():
        x = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        jaxpr = jax.make_jaxpr(forward)(variables, x).jaxpr
    paths = [jax.tree_util.keystr(path[1:], simple=True, separator=".") for path, _ in
             jax.tree_util.tree_leaves_with_path(variables)]  # fmt: skip
    traced = _Trace(layers, model.input_shape)
    (output,) = traced.run(jaxpr, [*paths, 0])
    return reachable(shorten_concatenations(traced.nodes), output)


def shorten_concatenations(nodes: list[Node]) -> list[Node]:
    """Return the nodes where a concatenation of all maps so far, as DenseNet's, takes the one
    before it and the new map.
    """
    before: dict[tuple[int, ...], int] = {}
    for number, node in enumerate(nodes):
        if node.label == "concatenate":
            whole = node.inputs
            longest = max((n for n in before if whole[: len(n)] == n), key=len, default=())
            if longest == whole:  # the same maps for another reader
                node.inputs, node.label = (before[whole],), ""
                continue
            if longest:
                node.inputs = (before[longest], *whole[len(longest) :])
            before[whole] = number
    return nodes


def reachable(nodes: list[Node], output: int) -> list[Node]:
    """Return the nodes that the output depends on, without those that have no label.

    They are numbered again from zero.
    """
    needed, stack = set(), [output]
    while stack:
        if (number := stack.pop()) not in needed:
            needed.add(number)
            stack += nodes[number].inputs
    kept: list[Node] = []
    places: dict[int, int] = {}
    for number in sorted(needed):
        node = nodes[number]
        inputs = tuple(dict.fromkeys(places[i] for i in node.inputs))
        if not node.label:
            (places[number],) = inputs
            continue
        places[number] = len(kept)
        kept.append(dataclasses.replace(node, inputs=inputs))
    return kept


# --- From nodes to what is drawn -----------------------------------------------------------------


@dataclasses.dataclass
class Box:
    """A node with the norms and activations after it; the inputs are numbers of boxes."""

    label: str
    kind: str
    shape: Shape
    inputs: tuple[int, ...]
    names: list[str]
    parameters: int
    multiply_adds: int


# What a norm or an activation may stand with; a norm after a sum prepares what follows.
LAYERS = ("layer", "attention", "pool", "norm", "activation")
CARRIES = {"norm": LAYERS, "activation": (*LAYERS, "join")}


def boxes(nodes: list[Node]) -> list[Box]:
    """Return the boxes of a drawing: norms and activations stand with the layer before them, where
    nothing else reads it and it is not a sum or concatenation.
    """
    readers: dict[int, int] = {}
    for node in nodes:
        for number in node.inputs:
            readers[number] = readers.get(number, 0) + 1
    drawn: list[Box] = []
    places: dict[int, int] = {}
    for number, node in enumerate(nodes):
        inputs = tuple(dict.fromkeys(places[i] for i in node.inputs))
        names = [node.name] if node.name else []
        box = drawn[inputs[0]] if inputs else None
        if box and box.kind in CARRIES.get(node.kind, ()) and readers[node.inputs[0]] == 1:
            box.label += f"{DOT}{node.label}"
            box.shape = node.shape
            box.names += names
            box.parameters += node.parameters
            box.multiply_adds += node.multiply_adds
            places[number] = inputs[0]
            continue
        places[number] = len(drawn)
        drawn.append(Box(node.label, node.kind, node.shape, inputs, names, node.parameters,
                         node.multiply_adds))  # fmt: skip
    return drawn


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of the network that has one input, the unit before it, and one output, its last box.

    `inputs` has the places of a box's inputs within the unit, from 0; -1 is the unit's input.
    """

    boxes: tuple[Box, ...]
    inputs: tuple[tuple[int, ...], ...]

    def signature(self) -> Any:
        """Return what units have in common that are drawn once; concatenations may have more
        channels in each.
        """
        return self.inputs, tuple((box.label, box.kind, box.shape[:-1]) for box in self.boxes)


def units(drawn: list[Box]) -> list[Unit]:
    """Return the units of a network. One ends at every box that no edge passes by."""
    last_reader = {}
    for number, box in enumerate(drawn):
        for i in box.inputs:
            last_reader[i] = number
    found: list[Unit] = []
    begin, furthest = 1, 0
    for number in range(1, len(drawn)):
        furthest = max(furthest, last_reader[number - 1])
        if furthest == number:
            part = tuple(drawn[begin : number + 1])
            inputs = tuple(tuple(i - begin for i in box.inputs) for box in part)
            found.append(Unit(part, inputs))
            begin = number + 1
    return found


def repeated(sequence: list[Unit], longest: int = 8) -> Iterator[tuple[list[Unit], int]]:
    """Yield runs of equal units, or of equal groups of up to `longest` units, with their number of
    repetitions.
    """
    signs = [unit.signature() for unit in sequence]
    place = 0
    while place < len(signs):
        best = (1, 1)
        for period in range(1, longest + 1):
            group, count = signs[place : place + period], 1
            while signs[place + count * period :][:period] == group:
                count += 1
            if count > 1 and period * count > best[0] * best[1]:
                best = (period, count)
        period, count = best
        yield sequence[place : place + period * count], count
        place += period * count
