"""Make a recipe's update rule: learning rate schedule, optimiser, and average of the parameters.

A recipe's rates and decays have the meaning that they have in torch's optimisers. The rules are
optax's.
"""

import fnmatch
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax, tree_util

from flaxnets.convert import torch_keys
from flaxnets.errors import InputError
from flaxnets.recipes import Recipe
from flaxnets.training.state import Average, PyTree, TrainState


def warmup_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the number of steps at the start in which the learning rate rises."""
    return round(recipe.warmup_epochs * steps_per_epoch)


def learning_rate_schedule(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """Return the function from the number of steps taken to the learning rate.

    The plateau rule is not part of it, because that depends on the validation error. The rate may
    change at every step, whereas torchvision's changes once an epoch.
    """
    peak, warmup = recipe.learning_rate, warmup_steps(recipe, steps_per_epoch)
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "one_cycle":  # includes its own rise
        rise = recipe.warmup_epochs / recipe.epochs or 0.3
        return optax.cosine_onecycle_schedule(total, peak, pct_start=rise)
    if recipe.schedule == "cosine":
        floor = recipe.final_rate / peak
        after = optax.cosine_decay_schedule(peak, max(total - warmup, 1), alpha=floor)
    elif recipe.schedule == "linear":
        after = optax.linear_schedule(peak, recipe.final_rate, max(total - warmup, 1))
    elif recipe.schedule in ("step", "multistep"):
        milestones = recipe.milestones
        if recipe.schedule == "step":
            count = int(recipe.epochs / recipe.step_epochs)
            milestones = [recipe.step_epochs * (i + 1) for i in range(count)]
        factors: dict[int, float] = {}
        for milestone in milestones:
            step = round(milestone * steps_per_epoch) - warmup
            factors[step] = factors.get(step, 1.0) * recipe.factor
        after = optax.piecewise_constant_schedule(peak, factors)
    else:
        after = optax.constant_schedule(peak)
    start = peak * max(recipe.warmup_factor, 1 / (warmup + 1))
    rise = optax.linear_schedule(start, peak, warmup)
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def matches(patterns: Sequence[str], key: str) -> bool:
    """Return whether one of `patterns` ("features.*") matches a torch key."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def unless_frozen(recipe: Recipe, old: PyTree, new: PyTree) -> PyTree:
    """Return the variables `new`, in which those that the recipe freezes are taken from `old`."""

    def choose(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
        return old if matches(recipe.freeze, key) else new

    return jax.tree.map(choose, torch_keys(old), old, new)


def make_optimizer(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the recipe's update rule. Frozen parameters do not move and have no optimiser state.

    Its `init` raises InputError if a pattern of the recipe matches no parameter.
    """
    rule = optax.chain(_rule(recipe, schedule), _scale_by_name(recipe.rate_factors))

    def labels(params: PyTree) -> PyTree:
        keys = _keys(params)
        _check_patterns("freeze", recipe.freeze, keys)
        _check_patterns("no decay", recipe.no_decay, keys)
        for what, factors in (("rate", recipe.rate_factors), ("decay", recipe.decay_factors)):
            _check_patterns(f"{what} factor", [pattern for pattern, _ in factors], keys)
        if recipe.optimizer == "muon":
            _check_patterns("muon", recipe.muon_keys, keys)
        return jax.tree.map(lambda key: "frozen" if matches(recipe.freeze, key) else "free", keys)

    return optax.partition({"free": rule, "frozen": optax.set_to_zero()}, labels)


def _keys(params: PyTree) -> PyTree:
    return torch_keys({"params": params})["params"]


def _check_patterns(what: str, patterns: Sequence[str], keys: PyTree) -> None:
    for pattern in patterns:
        if not fnmatch.filter(jax.tree.leaves(keys), pattern):
            raise InputError(
                f"{what} {pattern!r} matches no parameter; expected a pattern of names such as "
                f"{', '.join(jax.tree.leaves(keys)[:3])}"
            )


def _scale_by_name(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    if not factors:
        return optax.identity()

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda update, key: _factor(factors, key) * update, updates, _keys(updates)
        )

    return optax.stateless(scale)


def _factor(factors: Sequence[tuple[str, float]], key: str) -> float:
    matching = [factor for pattern, factor in factors if fnmatch.fnmatchcase(key, pattern)]
    return matching[-1] if matching else 1.0


def decays(recipe: Recipe, params: PyTree) -> PyTree:
    """Return a tree like `params` that tells for each parameter whether weight decay acts on it."""
    norms = {path[:-1] for path, _ in tree_util.tree_leaves_with_path(params) if _is_scale(path)}

    def leaf(path, key: str) -> bool:
        exempt = path[:-1] in norms and not recipe.decay_norms
        return not exempt and not matches(recipe.no_decay, key)

    return tree_util.tree_map_with_path(leaf, _keys(params))


def _is_scale(path: tuple) -> bool:
    return path[-1].key == "scale"  # only norms have one


def _rule(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the update rule for all parameters, without the factors of single parameters.

    SGD, RMSProp and LARS add the weight decay to the gradient; AdamW and LAMB add it to the update.
    LARS also skips the trust ratio of parameters without decay.
    """

    def decayed(params: PyTree) -> PyTree:
        return decays(recipe, params)

    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    decay, momentum = recipe.weight_decay, recipe.momentum
    coupled = _coupled_decay(recipe)
    match recipe.optimizer:
        case "sgd":
            rule = optax.chain(coupled, optax.sgd(schedule, momentum, nesterov=recipe.nesterov))
        case "rmsprop":
            by_root = optax.rmsprop(
                schedule, recipe.rmsprop_decay, recipe.rmsprop_epsilon, momentum=momentum
            )
            rule = optax.chain(coupled, by_root)
        case "rmsprop_torch":
            by_root = optax.scale_by_rms(
                recipe.rmsprop_decay, recipe.rmsprop_epsilon, eps_in_sqrt=False
            )
            rule = optax.chain(coupled, by_root, optax.sgd(schedule, momentum))
        case "adamw":
            rule = optax.adamw(schedule, b1=momentum, weight_decay=decay, mask=decayed)
        case "lamb":
            rule = optax.lamb(schedule, b1=momentum, weight_decay=decay, mask=decayed)
        case "lars":
            rule = optax.lars(
                schedule, decay, decayed,
                trust_ratio_mask=decayed, momentum=momentum, nesterov=recipe.nesterov,
            )  # fmt: skip
        case "muon":
            sgd = optax.chain(coupled, optax.sgd(schedule, momentum, nesterov=recipe.nesterov))

            def rule_of(key: str, x: jax.Array) -> str:
                return "muon" if x.ndim > 1 and matches(recipe.muon_keys, key) else "sgd"

            rule = optax.partition(
                {"muon": _muon(recipe, schedule), "sgd": sgd},
                lambda params: jax.tree.map(rule_of, _keys(params), params),
            )
    return optax.chain(clip, rule)


def _coupled_decay(recipe: Recipe) -> optax.GradientTransformation:
    """Return a transformation that adds the weight decay to the gradient."""
    if not recipe.decay_factors:
        return optax.add_decayed_weights(recipe.weight_decay, lambda p: decays(recipe, p))

    def add(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda update, x, decays, key: update
            + (recipe.weight_decay * _factor(recipe.decay_factors, key) * x if decays else 0),
            updates, params, decays(recipe, params), _keys(params),
        )  # fmt: skip

    return optax.stateless(add)


def _muon(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for kernels (..., features), as in Jordan's airbench94_muon.py.

    Three Newton-Schulz steps bring the momentum's singular values close to each other. Before every
    update the kernel is scaled to the norm sqrt(features), which replaces weight decay.
    """

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1),
            params,
        )

    def normalize(updates: PyTree, params: PyTree) -> PyTree:
        def leaf(update: jax.Array, x: jax.Array) -> jax.Array:
            return update + x * (jnp.sqrt(x.shape[-1]) / jnp.linalg.norm(x.ravel()) - 1)

        return jax.tree.map(leaf, updates, params)

    return optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=3, beta=recipe.muon_momentum, weight_dimension_numbers=matrices
        ),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(normalize),
    )


def plateau_rule(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Return Krizhevsky's rule: multiply the rate by `factor` when the validation error stalls."""
    return optax.contrib.reduce_on_plateau(factor=recipe.factor, patience=recipe.patience)


def after_epoch(state: TrainState, recipe: Recipe, validation_error: float) -> TrainState:
    """Return the state with the plateau rule applied, if the recipe has it."""
    if recipe.schedule != "plateau":
        return state
    _, plateau = plateau_rule(recipe).update((), state.plateau, value=validation_error)
    return state.replace(plateau=plateau)


def averaging_rule(
    recipe: Recipe, steps_per_epoch: int
) -> Callable[[Average, Average, jax.Array], Average] | None:
    """Return `(average, newest, step) -> average`, or None if the recipe has no moving average.

    The exponential moving average is over parameters and running statistics. Every `ema_steps`
    steps it becomes decay * average + (1 - decay) * newest. During the warm-up it is a copy of the
    newest values, as in torchvision (references/classification/train.py).
    """
    if not recipe.ema_decay:
        return None
    warmup = warmup_steps(recipe, steps_per_epoch)

    def update(average: Average, newest: Average, step: jax.Array) -> Average:
        share = jnp.where(step < warmup, 1.0, 1 - recipe.ema_decay)
        return lax.cond(
            step % recipe.ema_steps == 0,
            lambda: optax.incremental_update(newest, average, share),
            lambda: average,
        )

    return update
