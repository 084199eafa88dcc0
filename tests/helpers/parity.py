"""Compare a network of ours with an independent torch module, on random weights.

Logits are compared in float32. Gradients and training steps are compared in float64, to a bound a
million times tighter than float32 allows. In float32 both sides err by up to 4e-3 where rounding
moves the maximum of a pool to another pixel or a value across a ReLU's zero (measured on AlexNet
2012, torch's float32 against its float64). That would hide a real difference.
"""

import dataclasses
import functools
import math
import platform
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from flaxnets import create_model, from_torch, to_torch
from flaxnets.convert import IGNORED
from flaxnets.initializers import drawn
from flaxnets.kernels.onednn.library import Computation, computes_bfloat16
from tools.torchvision_import import torchvision

AUX_WEIGHT = 0.3


def quickly(level: int) -> dict[str, Any]:
    """Return compiler options for gradients in float64, which oneDNN lacks and XLA compiles slowly.

    Operations are the same, optimised by LLVM at `level` (0 to 3). Level 0 compiles in a quarter of
    the time, level 1 in half of it. Later versions of XLA have only the emitters that compile more
    slowly.
    """
    options: dict[str, Any] = {"xla_backend_optimization_level": level}
    if jax.__version_info__ < (0, 11):
        options["xla_cpu_use_fusion_emitters"] = False
    return options


jit_quickly = functools.partial(jax.jit, compiler_options=quickly(0))
# The platform decides, not whether the library loads, so that a broken library fails.
onednn_only = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="onednn-cpu-gomp is for Linux on x86-64",
)
# A library that does not load is noticed by the tests marked `onednn_only`.
bfloat16_only = pytest.mark.skipif(
    not computes_bfloat16(), reason="this CPU does not multiply bfloat16"
)

# jax's switches that find errors, each as a context.
SWITCHES: dict[str, Callable[[], Any]] = {
    "disable_jit": jax.disable_jit,
    "debug_infs": functools.partial(jax.debug_infs, True),
    "debug_nans": functools.partial(jax.debug_nans, True),
    "rank_promotion": functools.partial(jax.numpy_rank_promotion, "raise"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Values that pin a network, and the bounds of its comparison.

    The number of parameters, their keys and their shapes are those of the whole network, because
    they cost nothing. Values are compared with fewer features or blocks where these only repeat.
    """

    parameters: int  # exact, with the default number of classes and images of `input_shape`
    # Sides of the images in pixels: the native one and an odd one. A deeper network has a small odd
    # one.
    sizes: Sequence[int] = (224, 193)
    # fields of both modules, for logits
    cut_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_size: int = 64  # side of the images for gradients and training steps
    # None: torchvision's module of that name
    reference: Callable[..., torch.nn.Module] | None = None
    train_fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of both modules
    # Level of LLVM: 1 where the convolutions of five steps cost more time than level 0 saves.
    train_optimization: int = 0
    # Whether it is a deeper or wider variant of another compared network, made by the same code. It
    # is then marked slow, and its gradients are not compared again.
    deeper: bool = False
    batch: int = 4
    logits_bound: float = 1e-5
    training_bound: float = 1e-9


@dataclasses.dataclass(frozen=True)
class Small:
    """Fields that make a network cheap, and the facts that hold for it then."""

    fields: dict[str, Any]
    size: int  # side in pixels of images whose map has `cells` x `cells` positions
    cells: int  # 0 for a network without a map
    smallest: int  # side of the smallest image, in pixels
    # Number of parts that `remat=True` recomputes, in a comparison of gradients; 0 for no
    # comparison.
    recomputed: int = 0
    linear: bool = True  # whether its head is linear, so that the logits are the mean of the map


def build_reference(name: str, case: Case, **fields) -> torch.nn.Module:
    """Return the independent module as its own code initialises it."""
    if case.reference is None:
        return torchvision.models.get_model(name, weights=None, **fields)
    return case.reference(**fields)


def build_pair(name: str, case: Case, **fields) -> tuple[Any, Any]:
    """Return our module and torch's, so that both compute one function in training too.

    Norms get statistics that a wrong wiring cannot hide behind, and nothing is dropped at random.
    """
    torch.manual_seed(0)
    reference = build_reference(name, case, **fields)
    for module in reference.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
            module.get_buffer("running_mean").uniform_(-0.2, 0.2)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
        elif isinstance(module, torch.nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
        elif isinstance(module, (torch.nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0  # pyright: ignore[reportArgumentType]
    model = create_model(name, **fields)
    rates: dict[str, Any] = {
        f: 0.0 for f in ("dropout_rate", "stochastic_depth_rate") if hasattr(model, f)
    }
    return model.clone(**rates), reference


def without_constants(reference: torch.nn.Module) -> torch.nn.Module:
    """Return torch's module with random values in the parameters that it initialises as constants.

    A head of zeros, or a branch's factor of 1e-6, would hide what is wired wrongly before it.
    """
    for parameter in reference.parameters():
        if not parameter.is_meta and parameter.min() == parameter.max():
            parameter.data.uniform_(-0.2, 0.2)
    return reference


def images(size: int, batch: int = 2, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return normally distributed images (N, size, size, channels)."""
    shape = (batch, size, size, channels)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    """Return images (N, H, W, C) as a torch tensor (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def initial_shapes(model, x: np.ndarray):
    """Return the shapes of the variables that the model makes for such images."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))


def torch_shapes(variables) -> dict[str, tuple[int, ...]]:
    """Return the shape of each variable under its torch key, in torch's layout."""
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.False_, leaf.shape), variables)
    return {k: v.shape for k, v in to_torch(empty).items() if not k.endswith(IGNORED)}


def shapes_of_reference(name: str, case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter and buffer of torch's whole module, which has no values
    here.
    """
    with torch.device("meta"):
        state_dict = build_reference(name, case).state_dict()
    return {k: tuple(v.shape) for k, v in state_dict.items() if not k.endswith(IGNORED)}


def converted(model, reference: torch.nn.Module, x: np.ndarray):
    """Return the reference's weights in our tree. The sets of keys must agree both ways."""
    return from_torch(reference.state_dict(), initial_shapes(model, x))


def unlike_initial_values(model, reference: torch.nn.Module, x: np.ndarray) -> list[str]:
    """Return torch's keys of the parameters whose initial values differ from ours in mean or
    deviation.

    More than six standard errors of two draws of that number of values count as different.
    """
    ours = to_torch(drawn(model.init)(jax.random.key(0), jnp.asarray(x)))
    unlike = []
    for key, value in reference.named_parameters():
        theirs = value.detach().numpy()
        error = 6 * np.std(theirs, dtype=np.float64) / math.sqrt(theirs.size) + 1e-12
        means, deviations = (
            abs(function(ours[key], dtype=np.float64) - function(theirs, dtype=np.float64))
            for function in (np.mean, np.std)
        )
        if means > math.sqrt(2) * error or deviations > error:
            unlike.append(key)
    return unlike


def recomputed_parts(jaxpr) -> int:
    """Return how many parts of a program `jax.checkpoint` marks, at any depth."""
    count = 0
    for equation in jaxpr.eqns:
        count += "remat" in equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += recomputed_parts(inner)
    return count


def computed(kind: type[Computation], monkeypatch) -> list[Computation]:
    """Return a list that gets oneDNN's computations of that kind, as programs run them."""
    calls, run = [], kind.__call__

    def noted(self, addresses):
        calls.append(self)
        run(self, addresses)

    monkeypatch.setattr(kind, "__call__", noted)
    return calls


def relative_error(ours, theirs, floor: float = 0.0) -> float:
    """Return max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), floor))


def largest_error(ours: dict[str, np.ndarray], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest relative error over two dicts, which must have the same keys.

    Values that are zero except for rounding, such as the gradient of a bias before a batch norm,
    are measured against the largest value of all.
    """
    assert set(ours) == set(theirs)
    floor = 1e-4 * max(float(value.detach().abs().max()) for value in theirs.values())
    return max(relative_error(ours[key], theirs[key].detach(), floor) for key in ours)


def logits_error(model, reference: torch.nn.Module, x: np.ndarray, variables=None) -> float:
    """Return the relative error of the logits, with the reference's weights in our tree.

    `variables` are these weights if they have been `converted` before.
    """
    with torch.no_grad():
        theirs = reference.eval()(nchw(x))
    ours = jax.jit(model.apply)(variables or converted(model, reference, x), x)
    return relative_error(ours, theirs)


def round_trip_is_exact(variables, reference: torch.nn.Module) -> bool:
    """Return whether torch's module accepts the values that `to_torch` gives, exact to the bit."""
    state_dict = {key: value.clone() for key, value in reference.state_dict().items()}
    back = to_torch(variables)
    tensors = OrderedDict((key, torch.from_numpy(value)) for key, value in back.items())
    # Only the version of the outermost module, without which torchvision's MnasNet loads nothing.
    vars(tensors)["_metadata"] = {"": vars(reference.state_dict())["_metadata"][""]}
    reference.load_state_dict(tensors)
    kept = {key for key in state_dict if not key.endswith("num_batches_tracked")}
    return set(back) == kept and all(np.array_equal(back[k], state_dict[k].numpy()) for k in kept)


def _torch_parameters(params) -> dict[str, np.ndarray]:
    """Return parameters, or their gradients, under torch's keys, without its integer buffers."""
    state_dict = to_torch({"params": params})
    return {key: value for key, value in state_dict.items() if not key.endswith(IGNORED)}


def _torch_loss(reference: torch.nn.Module, x: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Return the cross entropy, plus that of auxiliary heads. torch returns these after the
    logits.
    """
    outputs = reference(nchw(x).double())
    logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = functools.partial(torch.nn.functional.cross_entropy, target=torch.from_numpy(labels))
    return loss(logits) + AUX_WEIGHT * sum(loss(a) for a in aux)


def _our_loss(params, model, rest, x, labels):
    logits, updates = model.apply(
        {"params": params, **rest},
        x,
        train=True,
        mutable=[*rest, "aux_logits"],
        rngs={"dropout": jax.random.key(0)},
    )
    aux = jax.tree.leaves(updates.pop("aux_logits", {}))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = cross_entropy(logits, labels).mean()
    return loss + AUX_WEIGHT * sum(cross_entropy(a, labels).mean() for a in aux), updates


def training_errors(
    model, reference: torch.nn.Module, batches: Sequence[np.ndarray], optimization: int = 0
) -> dict[str, float]:
    """Return the relative errors of the first gradient with respect to every parameter, and of
    losses, parameters and running statistics over steps of SGD with momentum and weight decay.
    """
    with jax.enable_x64():
        model = model.clone(dtype=jnp.float64)
        return _training_errors(model, reference.double(), batches, optimization)


def _training_errors(
    model, reference: torch.nn.Module, batches: Sequence[np.ndarray], optimization: int
) -> dict[str, float]:
    variables = converted(model, reference, batches[0])
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    labels = np.arange(len(batches[0])) % 10

    optimizer = torch.optim.SGD(
        reference.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4
    )
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
    opt_state = jax.jit(tx.init)(params)

    @functools.partial(jax.jit, compiler_options=quickly(optimization))
    def step(params, rest, opt_state, x):
        value_and_grad = jax.value_and_grad(_our_loss, has_aux=True)
        (value, rest), grads = value_and_grad(params, model, rest, x, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state, value, grads

    errors, ours, theirs = {}, [], []
    for x in batches:
        optimizer.zero_grad()
        loss = _torch_loss(reference, x, labels)
        loss.backward()
        params, rest, opt_state, value, grads = step(params, rest, opt_state, x)
        if not errors:
            gradients = {
                key: p.grad for key, p in reference.named_parameters() if p.grad is not None
            }
            errors["gradients"] = largest_error(_torch_parameters(grads), gradients)
        optimizer.step()
        ours.append(float(value))
        theirs.append(loss.item())
    errors["losses"] = relative_error(ours, theirs)
    errors["parameters after"] = largest_error(
        _torch_parameters(params), dict(reference.named_parameters())
    )
    statistics = {k: v for k, v in reference.named_buffers() if "running" in k}
    if statistics:
        errors["statistics after"] = largest_error(to_torch(rest), statistics)
    return errors
