"""The one training step and the one evaluation step, as functions of one device.

Both run under a mapped axis named `AXIS`: each device sees its part of the batch, and what
leaves the function is reduced over the axis, hence the same on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxnets.convert import torch_keys
from flaxnets.errors import InputError
from flaxnets.kernels.folding import folded_norms
from flaxnets.layers import BatchNorm
from flaxnets.recipes import Loss, Recipe
from flaxnets.training import augmentation
from flaxnets.training.optimizer import matches
from flaxnets.training.state import Average, Batch, Metrics, PyTree, StepFunction, TrainState

AXIS = "batch"


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std a channel, in float32; uint8 images, as they were decoded, are divided by
    255 first, measured features have the units of the statistics.
    """
    shape = (1,) * (images.ndim - 1) + (-1,)  # the images' rank, as strict rank promotion asks
    shift, scale = (jnp.array(each, jnp.float32).reshape(shape) for each in (mean, std))
    unit = 255 if images.dtype == jnp.uint8 else 1
    return (images.astype(jnp.float32) / unit - shift) / scale


def losses(
    outputs: jax.Array, labels: jax.Array, kind: Loss, label_smoothing: float = 0.0
) -> jax.Array:
    """Of each example, (N,): `outputs` (N, K) against classes (N,), integers, or probabilities of
    classes (N, K), or against numbers (N,). Smoothing of the target is spread over all classes.
    """
    outputs = outputs.astype(jnp.float32)
    if _are_numbers(labels):
        targets = labels[:, None]
    else:
        classes = outputs.shape[1]
        targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes)
        targets = optax.smooth_labels(targets, label_smoothing)
    if kind == "squared_error":
        return optax.squared_error(outputs, targets).sum(1)
    return optax.softmax_cross_entropy(outputs, targets)


def _are_numbers(labels: jax.Array) -> bool:
    return labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.floating)


def scores(logits: jax.Array, labels: jax.Array, loss: Loss = "cross_entropy") -> Metrics:
    """Per example: the loss and, of classes, whether the label (of probabilities, the likeliest)
    is best or among the five best.
    """
    found = {"loss": losses(logits, labels, loss)}
    if _are_numbers(labels):
        return found
    logits = logits.astype(jnp.float32)
    labels = labels if labels.ndim == 1 else labels.argmax(1)
    right = jnp.take_along_axis(logits, labels[:, None], 1)
    better = (logits > right).sum(1)
    # Equal logits count by position, as in a stable sort: a constant network is not always right.
    index = jnp.arange(logits.shape[1])[None]
    better += ((logits == right) & (index < labels[:, None])).sum(1)
    better = jnp.where(jnp.isnan(right[:, 0]), logits.shape[1], better)
    return found | {
        "top1": (better < 1).astype(jnp.float32),
        "top5": (better < 5).astype(jnp.float32),
    }


def check_batch_norms(
    model: nn.Module, variables: PyTree, recipe: Recipe, image_shape: tuple[int, ...], devices: int
) -> None:
    """Raise InputError if a batch norm would see one value of each channel in a training step, in
    which case it gives its bias whatever the image. torch refuses that too.

    Args:
        variables: of the network, or their shapes.
        image_shape: (height, width, channels) of training images.
        devices: over which the batch is split.
    """
    parts = recipe.gradient_accumulation
    if recipe.batch_size > devices * parts or (recipe.sync_batch_norm and devices > 1):
        return

    def refuse(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and context.method_name == "__call__":
            by_batch = not module.use_running_average and not _is_frozen(module, recipe)
            if by_batch and args[0].size == args[0].shape[-1]:
                path = ".".join(module.path)
                place = " on each device" if devices > 1 else ""
                part = f" in each of the {parts} parts of a step" if parts > 1 else ""
                sync = ", sync batch norm" if devices > 1 else ""
                raise InputError(
                    f"batch norm {path} would see one value of each channel in training (one image"
                    f"{place}{part}, a map of 1x1 pixels); expected several: try batch size "
                    f"{2 * devices * parts}, larger images{sync}, or freeze {path + '.*'!r}"
                )
        return next_function(*args, **kwargs)

    def forward(variables: PyTree, images: jax.Array, key: jax.Array) -> Any:
        mutable = [name for name in (*variables, "aux_logits") if name != "params"]
        return model.apply(variables, images, train=True, mutable=mutable, rngs={"dropout": key})

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(refuse):
        jax.eval_shape(forward, variables, images, jax.random.key(0))


def _is_frozen(norm: BatchNorm, recipe: Recipe) -> bool:
    return matches(recipe.freeze, ".".join((*norm.path, "running_mean")))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    statistics: tuple[Sequence[float], Sequence[float]],
    recipe: Recipe,
    *,
    average: Callable[[Average, Average, jax.Array], Average] | None = None,
    seed: int = 0,
) -> StepFunction:
    """`(state, {"image": uint8, "label": int32}) -> (state, metrics)`, metrics averaged over the
    batch: "loss" of the main classifier and, of classes, "top1" and "top5".

    Of the recipe it takes

    - the objective: loss, label smoothing, weight of the auxiliary classifiers, which `sow` their
      logits into "aux_logits";
    - the augmentation of whole batches: crops that `flaxnets.data` left to the step, random
      erasing, mixup, CutMix. The metrics are then those
      of the blended images against the likelier class;
    - gradient accumulation;
    - `freeze`: what its patterns match keeps its bits, parameters and batch norms, which use their
      running statistics;
    - `sync_batch_norm`: otherwise each device takes statistics of its own images, as in torch's
      DistributedDataParallel.

    Gradients and running statistics are averaged over devices. `average` updates the state's
    average (`flaxnets.training.optimizer.averaging_rule`).
    """

    def unless_frozen(old: PyTree, new: PyTree) -> PyTree:
        def choose(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
            return old if matches(recipe.freeze, key) else new

        return jax.tree.map(choose, torch_keys(old), old, new)

    def norms_of_the_recipe(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and context.method_name in ("__call__", "moments"):
            if _is_frozen(module, recipe) and context.method_name == "__call__":
                kwargs = kwargs | {"use_running_average": True}
            if recipe.sync_batch_norm:
                kwargs = kwargs | {"axis_name": AXIS}
        return next_function(*args, **kwargs)

    def augmented(batch: Batch, key: jax.Array) -> Batch:
        """Normalised images with, where they are blended, probabilities as labels."""
        erasing, blending = jax.random.split(key)
        images = augmentation.cropped(batch, recipe.preprocessing.pad)
        images, labels = normalize(images, *statistics), batch["label"]
        images = augmentation.shifted(images, batch, 1 / jnp.array(statistics[1], jnp.float32))
        if recipe.random_erasing:
            images = augmentation.random_erasing(images, erasing, recipe.random_erasing)
        if recipe.mixup or recipe.cutmix:
            targets = jax.nn.one_hot(labels, model.num_classes)
            images, labels = augmentation.mixup_or_cutmix(
                images, targets, blending, recipe.mixup, recipe.cutmix
            )
        return {"image": images, "label": labels}

    def gradients(params: PyTree, model_state: PyTree, part: Batch, key: jax.Array):
        """The gradient of the objective, the new statistics, and the metrics, of some images."""

        def objective(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            images, labels = part["image"], part["label"]

            def mean_loss(outputs: jax.Array) -> jax.Array:
                return losses(outputs, labels, recipe.loss, recipe.label_smoothing).mean()

            constant = {"params": lax.stop_gradient(params)}
            variables = unless_frozen(constant, {"params": params}) | model_state
            with nn.intercept_methods(norms_of_the_recipe):
                logits, new_state = model.apply(
                    variables,
                    images,
                    train=True,
                    mutable=[*model_state, "aux_logits"],
                    rngs={"dropout": key},
                )
            new_state = dict(new_state)
            aux_logits = jax.tree.leaves(new_state.pop("aux_logits", {}))
            total = mean_loss(logits) + recipe.aux_weight * sum(map(mean_loss, aux_logits))
            metrics = jax.tree.map(jnp.mean, scores(logits, labels, recipe.loss))
            return total, (new_state, metrics)

        grads, (model_state, metrics) = jax.grad(objective, has_aux=True)(params)
        return grads, model_state, metrics

    def accumulated(params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array):
        """The same of the whole batch, in parts one after another."""
        parts = recipe.gradient_accumulation
        if parts == 1:
            return gradients(params, model_state, batch, key)

        def add(carry, part):
            index, part = part
            total, model_state = carry
            own = jax.random.fold_in(key, index)
            grads, model_state, metrics = gradients(params, model_state, part, own)
            total = jax.tree.map(lambda sum_, new: sum_ + new / parts, total, grads)
            return (total, model_state), metrics

        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        start = (jax.tree.map(jnp.zeros_like, params), model_state)
        (grads, model_state), metrics = lax.scan(add, start, (jnp.arange(parts), batch))
        return grads, model_state, jax.tree.map(jnp.mean, metrics)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        # Dropout uses the key itself, or those of the parts' indices.
        batch = batch | augmented(batch, jax.random.fold_in(key, recipe.gradient_accumulation))
        found = accumulated(state.params, state.model_state, batch, key)
        grads, model_state, metrics = lax.pmean(found, AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: (state.plateau.scale * u).astype(u.dtype), updates)
        new = {"params": optax.apply_updates(state.params, updates), **model_state}
        kept = unless_frozen({"params": state.params, **state.model_state}, new)
        newest = {"params": kept.pop("params"), "model_state": kept}
        state = state.replace(
            step=state.step + 1,
            opt_state=opt_state,
            average=average and average(state.average, newest, state.step),
            **newest,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module,
    statistics: tuple[Sequence[float], Sequence[float]],
    *,
    loss: Loss = "cross_entropy",
) -> Callable[[PyTree, Batch], tuple[Metrics, Metrics]]:
    """`(variables, batch with "mask") -> (sums, examples)`: the sums of the training step's metrics
    and "count" over the examples whose mask is one; and of every example of the batch, in its
    order, its "loss" (-1 where it is masked) and the class ("output") that is scored best. Both
    over all devices.
    """

    def eval_step(variables: PyTree, batch: Batch) -> tuple[Metrics, Metrics]:
        with folded_norms():
            logits: Any = model.apply(variables, normalize(batch["image"], *statistics))
        mask = batch["mask"]
        values = scores(logits, batch["label"], loss)
        sums = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
        sums = lax.psum({**sums, "count": mask.sum()}, AXIS)
        own = {"loss": jnp.where(mask > 0, values["loss"], -1.0), "output": logits.argmax(1)}
        return sums, lax.all_gather(own, AXIS, tiled=True)

    return eval_step
