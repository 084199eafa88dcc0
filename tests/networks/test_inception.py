"""What the papers state about GoogLeNet, BN-Inception and Inception v3, and what their fields
do.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model, to_torch
from flaxnets.blocks import ConvNormRelu
from flaxnets.initializers import drawn
from flaxnets.layers import BatchNorm, Conv
from flaxnets.models import bn_inception, googlenet
from networks import CASES
from networks.inception_v3 import KEPT
from tools.torchvision_import import torchvision

pytestmark = pytest.mark.slow  # networks of many modules
NAMES = ("googlenet", "bn_inception", "inception_v3")


def shapes(model, size: int = 224, channels: int = 3):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))


def count(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def inception(row: str = "3b", **fields):
    conv = functools.partial(Conv, use_bias=False)
    norm = functools.partial(BatchNorm, use_running_average=True)
    unit = functools.partial(ConvNormRelu, conv=conv, norm=norm)
    return googlenet.Inception(googlenet.ROWS[row], unit, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("googlenet", {"aux_logits": False}, 6_624_904),
        # the paper's network has a bias where this one has a scale and a bias, for 7,280 channels
        ("googlenet", {"aux_logits": False, "five_by_five": True}, 6_998_552 + 7_280),
        ("inception_v3", {"aux_logits": False}, 23_834_568),
        # the ports to Caffe and torch also have a bias before every norm, for 10,016 channels
        ("bn_inception", {"separable_stem": False}, 11_295_240 - 10_016),
    ],
)
def test_parameters_with_fields(name, fields, expected):
    assert count(shapes(create_model(name, **fields))) == expected


def test_rows_of_table_1():
    """Compare with Szegedy et al. 2015, Table 1: depth of every output, and parameters in units of
    1024.

    Parameters are compared in the rows whose printed count agrees with their printed widths to 1%.
    """
    depths = dict(zip(googlenet.ROWS, (256, 480, 512, 512, 512, 528, 832, 832, 1024), strict=True))
    thousands = {"3a": 159, "3b": 380, "4a": 364, "4b": 437, "4e": 840}
    channels = 192
    for row, depth in depths.items():
        x = jax.ShapeDtypeStruct((1, 14, 14, channels), jnp.float32)
        model = inception(row, five_by_five=True)
        y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        assert y.shape == (1, 14, 14, depth)
        if row in thousands:
            kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
            assert sum(k.size for k in kernels) / 1024 == pytest.approx(thousands[row], rel=0.01)
        channels = depth


@pytest.mark.parametrize(("naive", "depth"), [(True, 128 + 192 + 96 + 256), (False, 480)])
def test_naive_module_passes_all_channels_of_its_pool_through(naive, depth):
    x = jax.ShapeDtypeStruct((1, 28, 28, 256), jnp.float32)
    model = inception("3b", five_by_five=True, naive=naive)
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert y.shape == (1, 28, 28, depth)
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    if naive:
        assert sorted(kernels) == [(1, 1, 256, 128), (3, 3, 256, 192), (5, 5, 256, 96)]
    else:
        assert len(kernels) == 6


def test_naive_network_has_the_field_everywhere():
    variables = shapes(create_model("googlenet", naive=True))
    params = variables["params"]
    assert all("branch4" not in params[f"inception{row}"] for row in googlenet.ROWS)
    added = sum(one + three + five for one, _, three, _, five, _ in googlenet.ROWS.values())
    assert params["fc"]["kernel"].shape == (192 + added, 1000)


def test_rows_of_figure_5():
    """Compare with the sizes of Ioffe & Szegedy 2015, except the sums that its own widths
    contradict.
    """
    expected = {
        "3a": (28, 256), "3b": (28, 320), "3c": (14, 576),
        "4a": (14, 576), "4b": (14, 576), "4c": (14, 608), "4d": (14, 608), "4e": (7, 1056),
        "5a": (7, 1024), "5b": (7, 1024),
    }  # fmt: skip
    model = create_model("bn_inception")
    x = jnp.zeros((1, 224, 224, 3))
    run = functools.partial(model.init_with_output, capture_intermediates=True)
    _, variables = jax.eval_shape(run, jax.random.key(0), x)
    for row in bn_inception.ROWS:
        (y,) = variables["intermediates"][f"inception{row}"]["__call__"]
        assert (y.shape[1], y.shape[3]) == expected[row]


@pytest.mark.parametrize("fields", [{"five_by_five": True}, {"transform_input": True}])
def test_googlenet_fields_agree_with_torch(fields):
    model, reference = parity.build_pair("googlenet", CASES["googlenet"], **fields)
    assert parity.logits_error(model, reference, parity.images(64)) < 1e-5


def test_plain_stem_agrees_with_torch():
    model, reference = parity.build_pair(
        "bn_inception", CASES["bn_inception"], separable_stem=False
    )
    assert parity.logits_error(model, reference, parity.images(64)) < 1e-5


def test_transform_input_of_inception_v3_agrees_with_torch():
    case = CASES["inception_v3"]
    model, reference = parity.build_pair("inception_v3", case, transform_input=True)
    assert parity.logits_error(model, reference, parity.images(75)) < 1e-5


def test_transform_input_wants_rgb():
    with pytest.raises(ValueError, match="these have 1 channels"):
        shapes(create_model("googlenet", transform_input=True), channels=1)


# Fields of torchvision's training output, and sides of images that the heads accept.
AUXILIARY = {
    "googlenet": ({"aux_logits1", "aux_logits2"}, 32),
    "inception_v3": ({"aux_logits"}, 299),
}
# Layers after the last auxiliary head, on which the auxiliary losses do not depend.
AFTER = {
    "googlenet": ("inception4e", "inception5a", "inception5b", "fc"),
    "inception_v3": ("Mixed_7a", "Mixed_7b", "fc"),
}


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_losses_reach_the_trunk_as_in_torch(name):
    """Compare the heads' logits by name, and the gradients of their losses alone, in float64."""
    names, size = AUXILIARY[name]
    fields: dict[str, Any] = {"aux_dropout_rate": 0.0} if name == "googlenet" else {"modules": KEPT}
    model, reference = parity.build_pair(name, CASES[name], num_classes=10, **fields)
    x = parity.images(size)

    outputs = reference.double().train()(parity.nchw(x).double())
    theirs = {head: getattr(outputs, head) for head in names}
    torch.stack([logits.log_softmax(1)[:, 0].mean() for logits in theirs.values()]).sum().backward()
    reached = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    assert not {key for key in reached if key.startswith(AFTER[name])}

    def loss(params, rest):
        _, updates = model.clone(dtype=jnp.float64).apply(
            {"params": params, **rest},
            x,
            train=True,
            mutable=["batch_stats", "aux_logits"],
            rngs={"dropout": jax.random.key(0)},
        )
        aux_logits: Any = updates["aux_logits"]
        sown = {head: logits for head, (logits,) in aux_logits.items()}
        return sum(jax.nn.log_softmax(logits)[:, 0].mean() for logits in sown.values()), sown

    with jax.enable_x64():
        variables = parity.converted(model, reference, x)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        params, rest = variables.pop("params"), variables
        options = parity.quickly(0 if name == "googlenet" else 1)
        grads, ours = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)(params, rest)
        grads = to_torch({"params": grads})
    assert parity.largest_error(ours, theirs) < 1e-9
    assert parity.largest_error({key: grads.pop(key) for key in reached}, reached) < 1e-9
    assert {key.split(".")[0] for key in grads} == set(AFTER[name])
    assert not any(gradient.any() for gradient in grads.values())


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_logits_are_sown_only_when_asked(name):
    """They are sown neither in evaluation, nor without the field, nor during initialisation."""
    names, size = AUXILIARY[name]
    x = jnp.zeros((2, size, size, 3))
    key = jax.random.key(0)
    for aux_logits in (True, False):
        model = create_model(name, num_classes=10, aux_logits=aux_logits)
        variables = jax.eval_shape(functools.partial(model.init, train=True), key, x)
        assert set(variables) == {"params", "batch_stats"}
        for train in (True, False):
            apply = functools.partial(model.apply, train=train, mutable=True, rngs={"dropout": key})
            logits, updates = jax.eval_shape(apply, variables, x)
            assert logits.shape == (2, 10)
            sown = updates.get("aux_logits", {})
            expected = names if aux_logits and train else ()
            assert {head: leaf.shape for head, (leaf,) in sown.items()} == dict.fromkeys(
                expected, (2, 10)
            )


def test_inception_v3_has_one_tree_at_every_size():
    model = create_model("inception_v3")
    assert shapes(model, 75) == shapes(model, 299)


@pytest.mark.parametrize(("name", "smallest"), [("googlenet", 15), ("inception_v3", 75)])
def test_smallest_images_are_torchvisions(name, smallest):
    """They are `min_size` of torchvision's weights. One pixel less gives one clear sentence."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert weights.meta["min_size"] == (smallest, smallest)
    model = create_model(name)
    variables = shapes(model, smallest)
    images = jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, images).shape == (1, 1000)
    images = jax.ShapeDtypeStruct((1, smallest - 1, smallest, 3), jnp.float32)
    with pytest.raises(ValueError, match="the images are too small for this network"):
        jax.eval_shape(model.apply, variables, images)


def test_smallest_images_of_googlenet_agree_with_torch():
    """In ceil mode a pool's window may extend beyond a map that is smaller than the window."""
    model, reference = parity.build_pair("googlenet", CASES["googlenet"])
    assert parity.logits_error(model, reference, parity.images(15)) < 1e-5


def test_inception_v3_is_too_small_for_its_head_in_training_only():
    model = create_model("inception_v3")
    variables = shapes(model)
    images = jax.ShapeDtypeStruct((2, 298, 298, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 1000)
    train = functools.partial(model.apply, train=True, mutable=True)
    with pytest.raises(ValueError, match="a window of 5x5 does not fit a feature map of 4x4"):
        jax.eval_shape(train, variables, images, rngs={"dropout": jax.random.key(0)})


@pytest.mark.parametrize("size", [1, 2, 9])
def test_bn_inception_takes_any_image(size):
    model = create_model("bn_inception")
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert jax.eval_shape(model.apply, shapes(model), images).shape == (1, 1000)


def training_loss(params, rest, model, x):
    logits, updates = model.apply({"params": params, **rest}, x, train=True, mutable=True)
    return jax.nn.log_softmax(logits)[:, 0].mean(), updates


@pytest.mark.parametrize("name", NAMES)
def test_remat_computes_every_module_twice_with_the_same_tree(name):
    model = create_model(name, dropout_rate=0.0, remat=True)
    if name != "bn_inception":
        model = model.clone(aux_logits=False)
    variables = shapes(model)
    assert variables == shapes(model.clone(remat=False))
    params, rest = variables.pop("params"), variables
    loss = functools.partial(training_loss, model=model)
    jaxpr = jax.make_jaxpr(loss)(params, rest, x=jnp.zeros((1, 224, 224, 3)))
    modules = {"googlenet": 9, "bn_inception": 10, "inception_v3": 11}[name]
    assert sum("remat" in eqn.primitive.name for eqn in jaxpr.eqns) == modules


def test_remat_changes_no_gradient(monkeypatch):
    rows = {row: bn_inception.ROWS[row] for row in ("3a", "3c")}  # one row of each kind
    monkeypatch.setattr(bn_inception, "ROWS", rows)
    model = create_model("bn_inception", num_classes=10)
    x = parity.images(32)
    variables = drawn(model.init)(jax.random.key(0), x)
    params, rest = variables.pop("params"), variables
    gradient = jax.jit(jax.grad(training_loss, has_aux=True), static_argnames="model")
    plain, lean = (
        gradient(params, rest, model=model.clone(remat=remat), x=x) for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), plain, lean)


KERNELS = {
    "googlenet": ("conv3.conv", "inception4e.branch2.1.conv", "aux1.fc1", "aux2.fc2", "fc"),
    "inception_v3": (
        "Conv2d_4a_3x3.conv", "Mixed_6e.branch7x7dbl_3.conv", "AuxLogits.conv1.conv",
        "AuxLogits.fc", "fc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_initialisation_is_torchvisions(name):
    torch.manual_seed(0)
    networks = torchvision.models
    build = {"googlenet": networks.GoogLeNet, "inception_v3": networks.Inception3}[name]
    reference = build(num_classes=100, init_weights=True).state_dict()
    model = create_model(name, num_classes=100)

    @jax.jit  # XLA eliminates the kernels that are not returned
    def kernels(key):
        params = to_keys(model.init(key, jnp.zeros((1, 75, 75, 3))))
        return {module: params[module] for module in KERNELS[name]}

    for module, ours in kernels(jax.random.key(0)).items():
        theirs = reference[f"{module}.weight"].numpy()
        assert ours.size == theirs.size >= 76_800
        assert ours.std() == pytest.approx(theirs.std(), rel=0.02), module
        assert abs(ours.mean()) < 0.02 * theirs.std(), module


def to_keys(variables):
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
    return {
        ".".join(entry.key for entry in path[:-1]): leaf
        for path, leaf in leaves
        if path[-1].key.endswith("kernel")
    }


def test_bn_inception_starts_as_in_he_et_al():
    model = create_model("bn_inception")

    @jax.jit
    def kernel(key):
        return to_keys(model.init(key, jnp.zeros((1, 32, 32, 3))))["conv3.conv"]

    assert kernel(jax.random.key(0)).std() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.02)
