"""What every network promises: names, fields, sizes, precision."""

import ast
import copy
import graphlib
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Container, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxnets
import parity
from flaxnets import InputError, create_model, list_models, list_weights
from flaxnets.initializers import drawn
from flaxnets.models import FAMILIES, FAMILY_NAMES, vgg
from networks import CASES, TRACED, with_marks

ROOT = pathlib.Path(flaxnets.__file__).parent


def test_names_match_a_pattern():
    assert list_models("vgg1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert list_models("overfeat*") == ["overfeat_fast", "overfeat_accurate"]
    assert list_models("nothing*") == []


def test_names_of_a_family():
    assert list_models(family="lenet") == list(FAMILIES["lenet"])
    assert list_models("*_bn", family="vgg") == ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    assert list_models("*_bn", family="resnet") == []
    assert list_models() == [name for family in FAMILIES for name in list_models(family=family)]


def test_names_with_published_weights():
    names = list_models("*", pretrained=True)
    assert "resnet50" in names
    assert "resnet50" in list_models(family="resnet", pretrained=True)
    assert set(names) == {name for name in list_models() if list_weights(name)}
    assert list_models(family="mlp", pretrained=True) == []


def test_names_of_small_networks():
    """A network with exactly the limit is not smaller. Running statistics do not count."""
    count = CASES["resnet20_cifar"].parameters
    for limit, expected in ((count, []), (count + 1, ["resnet20_cifar"])):
        assert list_models("resnet20_*", smaller_than=limit) == expected
    assert list_models(family="mlp", smaller_than=650.5) == [
        "softmax_regression",
        "linear_regression",
    ]


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        ({"family": "vggs"}, "unknown family 'vggs'; did you mean 'vgg'?"),
        ({"smaller_than": 0}, "smaller_than is 0; expected a number of parameters above 0"),
    ],
)
def test_filters_that_no_network_can_fit_get_one_sentence(filters, sentence):
    with pytest.raises(InputError) as raised:
        list_models(**filters)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("vgg17", {}, "unknown architecture 'vgg17'; did you mean 'vgg16'?"),
        ("Alexnet", {}, "unknown architecture 'Alexnet'; did you mean 'alexnet'?"),
        (
            "vgg16",
            {"droput_rate": 0.1},
            "unknown field of vgg16 'droput_rate'; did you mean 'dropout_rate'?",
        ),
        ("vgg16", {"num_classes": -1}, "num_classes is -1; expected at least 1, or 0 for no head"),
    ],
)
def test_wrong_names_get_the_nearest_right_one(name, fields, sentence):
    with pytest.raises(InputError) as raised:
        create_model(name, **fields)
    assert str(raised.value) == sentence


def test_every_network_is_pickled_copied_and_hashed():
    for name in list_models():
        model = create_model(name)
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert other == model
            assert hash(other) == hash(model)


@pytest.mark.parametrize("name", with_marks(TRACED))
def test_class_count_channels_and_precision_are_free(name):
    """Try one network of each class; the comparison with torch tries every one in bfloat16."""
    model = create_model(name, num_classes=7, dtype=jnp.bfloat16, **TRACED[name])
    *size, channels = model.input_shape
    x = jnp.zeros((2, *size, channels + 1))

    def forward(key):
        return model.init_with_output({"params": key, "dropout": key}, x)

    logits, variables = jax.eval_shape(forward, jax.random.key(0))
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert set(variables) <= {"params", "batch_stats", "buffers"}


@pytest.mark.parametrize(
    ("name", "fields"), [("lenet5", {}), ("alexnet_2012", {"hidden_features": 16})]
)
def test_larger_images_give_the_mean_of_the_map(name, fields):
    model = create_model(name, num_classes=3, **fields)
    *size, channels = model.input_shape
    x = jax.random.normal(jax.random.key(1), (1, size[0] + 32, size[1] + 64, channels))
    variables = drawn(model.init)(jax.random.key(0), x[:, : size[0], : size[1]])
    scores: Any = jax.jit(model.clone(dense=True).apply)(variables, x)
    expected = {"lenet5": (1, 9, 17, 3), "alexnet_2012": (1, 2, 3, 3)}[name]
    assert scores.shape == expected
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), scores.mean((1, 2)), atol=1e-5)


def test_each_cell_of_lenets_map_is_the_network_on_its_crop():
    model = create_model("lenet5")
    x = jax.random.normal(jax.random.key(1), (1, 40, 36, 1))
    variables = drawn(model.init)(jax.random.key(0), x)
    scores: Any = jax.jit(model.clone(dense=True).apply)(variables, x)
    apply = jax.jit(model.apply)
    for row in range(scores.shape[1]):
        for column in range(scores.shape[2]):
            crop = x[:, 4 * row : 4 * row + 28, 4 * column : 4 * column + 28]
            np.testing.assert_allclose(scores[:, row, column], apply(variables, crop), atol=1e-5)


def test_alexnet_2012_is_initialised_as_the_paper_says():
    """Section 5: N(0, 0.01); biases one in layers 2, 4, 5 and the hidden linear layers."""
    model = create_model("alexnet_2012", hidden_features=64)
    params = drawn(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    ones = {("features", n) for n in "4"} | {("features", n) for n in ("10", "12")}
    ones |= {("classifier", "0"), ("classifier", "3")}
    for part, children in params.items():
        for index, layer in children.items():
            bias = 1 if (part, index) in ones else 0
            np.testing.assert_array_equal(layer["bias"], bias, err_msg=f"{part}.{index}")
            kernel = layer.get("kernel", layer.get("patch_kernel"))
            assert abs(float(kernel.std()) / 0.01 - 1) < 0.05
    layer_two = params["features"]["4"]["kernel"]
    # half of the 96 maps; the other half is on the other GPU
    assert layer_two.shape == (5, 5, 48, 256)


def test_every_network_can_recompute_activations():
    assert all(create_model(name, remat=True).remat for name in list_models())


@pytest.mark.parametrize(
    ("name", "size", "segments"),
    [("vgg11_bn", 32, 6), ("lenet5", 28, 3), ("mcdnn_mnist", 29, 3), ("mlp", 8, 4)],
)
def test_a_sequence_is_recomputed_in_segments_with_the_same_gradients(
    name, size, segments, monkeypatch
):
    """Every layer belongs to one of the segments. The tree and the gradients stay the same, in
    float64.
    """
    monkeypatch.setitem(vgg.COLUMNS, "A", ((4,), (4,), (4, 4), (4, 4), (4, 4)))  # a narrow one
    fields = {"dropout_rate": 0.5, "hidden_features": 16} if name.startswith("vgg") else {}
    with jax.enable_x64():
        model = create_model(name, dtype=jnp.float64, **fields)
        x = jax.random.normal(jax.random.key(0), (2, size, size, model.input_shape[-1]))
        variables = drawn(model.init)(jax.random.key(1), x)
        params = variables.pop("params")

        def loss(params, remat):
            logits, updates = model.clone(remat=remat).apply(
                {"params": params, **variables}, x, train=True,
                mutable=list(variables), rngs={"dropout": jax.random.key(2)},
            )  # fmt: skip
            return jnp.square(logits).sum(), updates

        grad = parity.jit_quickly(jax.grad(loss, has_aux=True), static_argnums=1)
        assert str(grad.trace(params, True).jaxpr).count("= remat2[") == segments
        plain, recomputed = grad(params, False), grad(params, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), plain,
                 recomputed)  # fmt: skip


def test_the_library_imports_without_tensorflow_and_torch():
    code = """
import sys
sys.modules["tensorflow"] = sys.modules["torch"] = None
import jax, flax.linen
import flaxnets, flaxnets.runs.loop, flaxnets.recipes
flaxnets.create_model("resnet50") if "resnet50" in flaxnets.list_models() else None
"""
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_the_scripts_answer_help_before_jax_and_matplotlib_are_imported():
    scripts = ", ".join(f"flaxnets.{name}" for name in SCRIPTS)
    code = f"import sys, {scripts}; print(*{{'jax', 'flax', 'matplotlib'}} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout == "\n"


def test_the_names_are_those_of_the_families_tables():
    tables = {family: " ".join(table) for family, table in FAMILIES.items()}
    assert tables == FAMILY_NAMES


# What each part of the library may import from the library. Imports run one way (CONTRIBUTING.md).
ALLOWED = {
    "errors": set(),
    "types": set(),
    "kernels": {"kernels", "errors"},
    "initializers": set(),
    "layers": {"kernels", "initializers"},
    "blocks": {"layers", "kernels", "errors"},
    "attention": {"blocks", "layers", "kernels"},
    "summary": {"layers", "attention"},
    "models": {"layers", "blocks", "attention", "initializers", "errors", "models"},
    "recipes": {"recipes", "models", "errors"},
    "convert": {"kernels", "errors"},
    "data": {"data", "recipes", "errors"},
    "training": {
        "training",
        "types",
        "recipes",
        "convert",
        "initializers",
        "layers",
        "kernels",
        "errors",
    },
    "runs": {
        "runs",
        "types",
        "training",
        "data",
        "models",
        "weights",
        "recipes",
        "summary",
        "script_help",
        "errors",
    },
    "inference": {
        "inference",
        "types",
        "convert",
        "runs",
        "training",
        "data",
        "models",
        "layers",
        "kernels",
        "recipes",
        "errors",
        "weights",
    },
    "catalog": {"models", "weights", "errors"},
    "terminal": {"errors"},
    "tables": set(),
    "script_help": {"terminal"},
    "weights": {
        "weights",
        "recipes",
        "models",
        "convert",
        "initializers",
        "errors",
        "terminal",
    },
}
SCRIPTS = ("train", "classify", "evaluate", "dense")  # python -m flaxnets.train; import anything
ALLOWED |= dict.fromkeys(SCRIPTS, {*ALLOWED} - {"layers", "kernels"})
FOREIGN = {
    "tensorflow": {"data"}, "tensorflow_datasets": {"data"}, "torchvision": set(),
    "torch": {"weights"},  # inside functions, to read .pth files
    "optax": {"training"}, "orbax": {"runs"}, "tensorstore": {"runs"},
}  # fmt: skip


def test_imports_run_one_way():
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root, *rest = name.split(".")
                if root == "flaxnets":
                    assert rest, f"{path} imports the face of the library"
                    assert rest[0] in ALLOWED[part], f"{path} imports {name}"
                elif root in FOREIGN:
                    assert part in FOREIGN[root], f"{path} imports {name}"
                if root.startswith("tensorflow"):
                    assert path.name == "tfds.py", f"{path} imports {name}"
                if part == "data":
                    assert root not in ("jax", "flax"), f"{path} imports {name}"
                if part == "kernels":
                    assert root != "flax", f"{path} imports {name}"
                if part == "models" and path.name != "__init__.py" and root == "flaxnets":
                    shared = [[part] for part in ALLOWED["models"] - {"models"}]
                    assert rest in (*shared, ["models", "base"]), f"{path} imports {name}"


def modules() -> dict[str, pathlib.Path]:
    """Return the path of every module of the library by its dotted name."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(tree: ast.AST, known: Container[str]) -> Iterator[str]:
    """Yield the `known` modules that a module imports anywhere, except for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if isinstance(node, ast.ImportFrom) and module is not None and module in known:
            names = (f"{module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else module for name in names)
        yield from imported(node, known)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle of imports, each imported by the next; the first is also the
    last.

    The list is empty if the imports have no circle.
    """
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_imports_run_in_a_circle():
    paths = modules()
    assert {"flaxnets", "flaxnets.models.vgg", "flaxnets.runs.loop"} <= paths.keys()
    graph = {
        name: set(imported(ast.parse(path.read_text()), paths)) for name, path in paths.items()
    }
    assert "flaxnets.layers" in graph["flaxnets.models.vgg"]
    assert circle(graph) == []


def test_a_circle_of_two_files_is_found_wherever_they_import():
    known = {"a", "b", "b.c"}
    code = {
        "a": "def late():\n    from b import c",
        "b": "if TYPE_CHECKING:\n    import a",
        "b.c": "import b\ntry:\n    from a import x\nexcept ImportError:\n    pass",
    }
    graph = {name: set(imported(ast.parse(text), known)) for name, text in code.items()}
    assert graph == {"a": {"b.c"}, "b": set(), "b.c": {"a", "b"}}
    assert set(circle(graph)) == {"a", "b.c"}
