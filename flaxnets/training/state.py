"""What a training run carries from step to step, and the optimiser that a recipe asks for."""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import tree_util

from flaxnets.convert import torch_keys
from flaxnets.errors import InputError
from flaxnets.recipes import Recipe

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """Everything that a checkpoint holds."""

    step: jax.Array  # int32, steps taken
    params: PyTree
    model_state: PyTree  # the other collections: running statistics of batch norm
    opt_state: optax.OptState
    plateau: Any  # optax's ReduceLROnPlateauState; its `scale` multiplies every update


def learning_rate_schedule(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """Step to learning rate, but for the plateau rule, which depends on the validation error."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        after = optax.cosine_decay_schedule(recipe.learning_rate, max(total - warmup, 1))
    elif recipe.schedule == "step":
        after = optax.piecewise_constant_schedule(
            recipe.learning_rate,
            {round(m * steps_per_epoch) - warmup: recipe.factor for m in recipe.milestones},
        )
    else:
        after = optax.constant_schedule(recipe.learning_rate)
    rise = optax.linear_schedule(recipe.learning_rate / (warmup + 1), recipe.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def is_frozen(freeze: Sequence[str], key: str) -> bool:
    """Whether a pattern of `freeze` matches the torch key of a parameter or a statistic."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in freeze)


def make_optimizer(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The recipe's rule for the parameters that are not frozen, which have no optimiser state."""
    rule = optax.chain(_rule(recipe, schedule), _scale_by_name(recipe.rate_factors))
    if not recipe.freeze:
        return rule

    def labels(params: PyTree) -> PyTree:
        keys = torch_keys({"params": params})["params"]
        for pattern in recipe.freeze:
            if not fnmatch.filter(jax.tree.leaves(keys), pattern):
                raise InputError(
                    f"freeze {pattern!r} matches no parameter; the first are "
                    f"{', '.join(jax.tree.leaves(keys)[:3])}"
                )
        return jax.tree.map(lambda key: "frozen" if is_frozen(recipe.freeze, key) else "free", keys)

    return optax.partition({"free": rule, "frozen": optax.set_to_zero()}, labels)


def _scale_by_name(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    if not factors:
        return optax.identity()

    def factor(key: str) -> float:
        matching = [f for pattern, f in factors if fnmatch.fnmatchcase(key, pattern)]
        return matching[-1] if matching else 1.0

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        keys = torch_keys({"params": updates})["params"]
        return jax.tree.map(lambda update, key: factor(key) * update, updates, keys)

    return optax.stateless(scale)


def _rule(recipe: Recipe, schedule: optax.Schedule) -> optax.GradientTransformation:
    """torch's SGD or RMSProp, the decay part of the gradient; or AdamW."""
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    if recipe.optimizer == "adamw":
        adamw = optax.adamw(schedule, b1=recipe.momentum, weight_decay=recipe.weight_decay)
        return optax.chain(clip, adamw)
    if recipe.optimizer == "sgd":
        rule = optax.sgd(schedule, momentum=recipe.momentum, nesterov=recipe.nesterov)
    else:
        rule = optax.rmsprop(schedule, decay=0.9, eps=1.0, momentum=recipe.momentum)
    return optax.chain(clip, optax.add_decayed_weights(recipe.weight_decay), rule)


def plateau_rule(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Krizhevsky's: multiply the rate by `factor` when the validation error stops improving."""
    return optax.contrib.reduce_on_plateau(factor=recipe.factor, patience=recipe.patience)


def after_epoch(state: TrainState, recipe: Recipe, validation_error: float) -> TrainState:
    """The state with the plateau rule applied, if the recipe has it."""
    if recipe.schedule != "plateau":
        return state
    _, plateau = plateau_rule(recipe).update((), state.plateau, value=validation_error)
    return state.replace(plateau=plateau)


def he_normal_everywhere(params: PyTree, key: jax.Array) -> PyTree:
    """Fresh kernels from He et al. 2015 (N(0, 2 / fan_in)), zero biases; norms stay."""

    def leaf(path, value):
        name = path[-1].key
        if name not in ("kernel", "patch_kernel", "bias"):
            return value
        if name == "bias":
            return jnp.zeros_like(value)
        # A name for the key: the tree's order must not matter.
        own = functools.reduce(jax.random.fold_in, map(ord, tree_util.keystr(path)), key)
        return nn.initializers.he_normal()(own, value.shape, value.dtype)

    return tree_util.tree_map_with_path(leaf, params)


def init_variables(
    model: nn.Module, input_shape: tuple[int, int, int], recipe: Recipe, seed: int
) -> PyTree:
    """Fresh variables, made in one compiled program."""

    @jax.jit
    def init():
        key = jax.random.key(seed)
        variables = model.init(key, jnp.zeros((1, *input_shape)))
        if recipe.initialization == "he_normal":
            variables = {**variables, "params": he_normal_everywhere(variables["params"], key)}
        return variables

    return init()


def create_state(
    variables: PyTree, optimizer: optax.GradientTransformation, recipe: Recipe
) -> TrainState:
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={name: tree for name, tree in variables.items() if name != "params"},
        opt_state=optimizer.init(params),
        plateau=plateau_rule(recipe).init(params),
    )


Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]
