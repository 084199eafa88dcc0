"""Test schedules, optimisers, decay by name and the moving average; against torch if possible."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxnets import InputError, create_model
from flaxnets.recipes import Recipe
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.training import batch_augmentation
from flaxnets.training.on_device import normalize
from flaxnets.training.optimizer import (
    after_epoch,
    averaging_rule,
    decays,
    learning_rate_schedule,
    make_optimizer,
)
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_train_step

RECIPE = Recipe(batch_size=16, epochs=2, learning_rate=0.05, schedule="constant")
PIXELS = ((0.5,) * 3, (0.25,) * 3)


# Schedules


def rates(steps_per_epoch=10, **values):
    recipe = dataclasses.replace(RECIPE, learning_rate=1.0, **values)
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    return [float(np.asarray(schedule(step))) for step in range(recipe.epochs * steps_per_epoch)]


def torch_rates(steps, scheduler, **arguments):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_those_of_torch():
    torch_schedules = torch.optim.lr_scheduler
    step = rates(schedule="step", epochs=7, step_epochs=2, factor=0.5)
    np.testing.assert_allclose(
        step, torch_rates(70, torch_schedules.StepLR, step_size=20, gamma=0.5), rtol=1e-5
    )
    exponential = rates(1, schedule="step", epochs=9, step_epochs=1, factor=0.9)
    np.testing.assert_allclose(
        exponential, torch_rates(9, torch_schedules.ExponentialLR, gamma=0.9), rtol=1e-5
    )
    multistep = rates(schedule="multistep", epochs=5, milestones=(1, 3.5))
    np.testing.assert_allclose(
        multistep, torch_rates(50, torch_schedules.MultiStepLR, milestones=[10, 35]), rtol=1e-5
    )
    cosine = rates(schedule="cosine", final_rate=0.1)
    np.testing.assert_allclose(
        cosine, torch_rates(20, torch_schedules.CosineAnnealingLR, T_max=20, eta_min=0.1), rtol=1e-5
    )
    linear = rates(schedule="linear", final_rate=0.1)
    falling = {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 20}
    np.testing.assert_allclose(
        linear, torch_rates(20, torch_schedules.LinearLR, **falling), rtol=1e-5
    )
    # optax counts the steps of each half where torch counts the intervals between them.
    one_cycle = rates(500, schedule="one_cycle")
    np.testing.assert_allclose(
        one_cycle,
        torch_rates(1000, torch_schedules.OneCycleLR, max_lr=1.0, total_steps=1000),
        atol=0.006,
    )
    assert max(one_cycle) == one_cycle[300] == 1
    early = rates(100, schedule="one_cycle", warmup_epochs=0.2)
    assert early.index(max(early)) == 20
    assert set(rates(schedule="constant")) == {1.0}


def test_warm_up_is_linear_and_milestones_count_from_the_start():
    step = rates(schedule="multistep", epochs=4, milestones=(1, 3), warmup_epochs=0.5)
    np.testing.assert_allclose(step[:5], [1 / 6 + i / 6 for i in range(5)], rtol=1e-6)
    np.testing.assert_allclose(step[5:10], 1.0)
    np.testing.assert_allclose(step[10:30], 0.1, rtol=1e-6)
    np.testing.assert_allclose(step[30:], 0.01, rtol=1e-6)
    half = rates(schedule="constant", warmup_epochs=1, warmup_factor=0.5)
    np.testing.assert_allclose(half[:11], np.linspace(0.5, 1, 11), rtol=1e-6)
    assert rates(1, schedule="step", epochs=3, step_epochs=0.5)[1] == pytest.approx(0.01)


def test_plateau_rule_divides_when_the_validation_error_stops_improving():
    recipe = dataclasses.replace(RECIPE, schedule="plateau", patience=2)
    optimizer = make_optimizer(recipe, lambda _: 1.0)
    state = create_state({"params": {"kernel": jnp.ones(())}}, optimizer, recipe)
    scales = []
    for error in (0.9, 0.8, 0.8, 0.81, 0.7, 0.7, 0.7, 0.69):
        state = after_epoch(state, recipe, error)
        scales.append(float(state.plateau.scale))
    np.testing.assert_allclose(scales, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    constant = dataclasses.replace(recipe, schedule="constant")
    assert after_epoch(state, constant, 5.0) is state


# Optimisers

PARAMS = {
    "conv1": {"kernel": np.linspace(-1, 1, 54, dtype=np.float32).reshape(3, 3, 2, 3)},
    "bn1": {"scale": np.full(3, 2, np.float32), "bias": np.full(3, -1, np.float32)},
    "fc": {
        "kernel": np.linspace(0.5, 1, 6, dtype=np.float32).reshape(3, 2),
        "bias": np.ones(2, np.float32),
    },
}


def steps(recipe, gradient, count=1):
    """Return PARAMS after some steps with the gradient `gradient(step, parameter)`."""
    optimizer = make_optimizer(recipe, lambda _: recipe.learning_rate)
    params = jax.tree.map(jnp.asarray, PARAMS)
    opt_state = optimizer.init(params)
    for step in range(count):
        grads = jax.tree.map(lambda p, step=step: jnp.asarray(gradient(step, p)), params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params


def wavy(step, parameter):
    shape = tuple(parameter.shape)
    return np.sin(step + np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"nesterov": True}, lambda groups: torch.optim.SGD(groups, 0.05, 0.9, nesterov=True)),
        (
            {"optimizer": "adamw", "weight_decay": 0.1},
            lambda groups: torch.optim.AdamW(groups, 0.05),
        ),
        (
            {"optimizer": "rmsprop_torch", "rmsprop_decay": 0.8, "rmsprop_epsilon": 0.0316},
            lambda groups: torch.optim.RMSprop(groups, 0.05, 0.8, 0.0316, momentum=0.9),
        ),
    ],
)
def test_steps_are_those_of_torch_with_norms_in_a_group_without_decay(values, reference):
    recipe = dataclasses.replace(RECIPE, decay_norms=False, **values)
    ours = steps(recipe, wavy, 5)
    theirs = jax.tree.map(lambda p: torch.from_numpy(p.copy()).requires_grad_(), PARAMS)
    norms = list(theirs["bn1"].values())
    others = [*theirs["conv1"].values(), *theirs["fc"].values()]
    decay = recipe.weight_decay
    optimizer = reference(
        [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": decay}]
    )
    for step in range(5):
        for parameter in norms + others:
            parameter.grad = torch.from_numpy(wavy(step, parameter.detach()))
        optimizer.step()
    for leaf, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(leaf, wanted.detach().numpy(), atol=3e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "rmsprop_torch", "adamw", "lars", "lamb"])
def test_what_does_not_decay_keeps_its_bits_without_a_gradient(optimizer):
    recipe = dataclasses.replace(
        RECIPE, optimizer=optimizer, weight_decay=0.1, decay_norms=False, no_decay=("*.bias",)
    )
    assert decays(recipe, PARAMS) == {
        "conv1": {"kernel": True},
        "bn1": {"scale": False, "bias": False},
        "fc": {"kernel": True, "bias": False},
    }
    after = steps(recipe, lambda step, parameter: jnp.zeros_like(parameter))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, PARAMS)
    assert moved == decays(recipe, PARAMS)


def test_lars_and_lamb_move_each_parameter_in_proportion_to_its_norm():
    recipe = dataclasses.replace(RECIPE, weight_decay=0.0, no_decay=("*.bias", "bn1.*"))
    for optimizer, share in (("lars", 0.001), ("lamb", 1.0)):
        after = steps(dataclasses.replace(recipe, optimizer=optimizer), wavy)
        for name in ("conv1", "fc"):
            before = PARAMS[name]["kernel"]
            step = np.linalg.norm(after[name]["kernel"] - before) / np.linalg.norm(before)
            assert step == pytest.approx(share * 0.05, rel=1e-3)


def orthogonalized(matrix, steps=3):
    """Compute Jordan's quintic Newton-Schulz iteration in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_moves_kernels_by_orthogonal_matrices_and_sgd_the_rest():
    """Without momentum, the kernel is scaled to the norm sqrt(features) before its update."""
    recipe = dataclasses.replace(
        RECIPE, optimizer="muon", muon_momentum=0.0, muon_keys=("conv1.*",), momentum=0.0,
        weight_decay=0.1, decay_factors=(("fc.*", 0.5), ("fc.bias", 0.0)),
    )  # fmt: skip
    after = steps(recipe, wavy)
    kernel = PARAMS["conv1"]["kernel"].astype(np.float64)
    update = orthogonalized(wavy(0, kernel).reshape(18, 3).T).T.reshape(kernel.shape)
    expected = kernel * (np.sqrt(3) / np.linalg.norm(kernel)) - 0.05 * update
    np.testing.assert_allclose(after["conv1"]["kernel"], expected, atol=1e-5)
    for module, name, decay in [
        ("bn1", "scale", 0.1), ("bn1", "bias", 0.1), ("fc", "kernel", 0.05), ("fc", "bias", 0.0)
    ]:  # fmt: skip
        before = PARAMS[module][name]
        moved = before - 0.05 * (wavy(0, before) + decay * before)
        np.testing.assert_allclose(after[module][name], moved, atol=1e-6)


def test_muon_remembers_gradients_as_jordans_does():
    """The scale has no effect once the bias corrections of the first steps have died away."""
    recipe = dataclasses.replace(
        RECIPE, optimizer="muon", muon_momentum=0.6, muon_keys=("conv1.*",), weight_decay=0.0
    )
    kernel, memory = PARAMS["conv1"]["kernel"].astype(np.float64), np.zeros((3, 3, 2, 3))
    for step in range(40):
        gradient = wavy(step, kernel)
        memory = 0.6 * memory + gradient
        update = orthogonalized((gradient + 0.6 * memory).reshape(18, 3).T).T
        kernel = kernel * (np.sqrt(3) / np.linalg.norm(kernel)) - 0.05 * update.reshape(3, 3, 2, 3)
    after = steps(recipe, wavy, 40)["conv1"]["kernel"]
    # What the corrections changed in the first steps is since rotated and scaled with the kernel.
    assert np.linalg.norm(after - kernel) < 0.02 * np.linalg.norm(kernel)


def test_a_gradient_is_clipped_to_its_norm():
    recipe = dataclasses.replace(RECIPE, momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    after = steps(recipe, wavy)
    moved = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), after, PARAMS)
    assert np.sqrt(sum(jax.tree.leaves(moved))) == pytest.approx(0.05 * 0.5, rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"freeze": ("fcc.*",)},
        {"no_decay": ("fcc.*",)},
        {"rate_factors": (("fcc.*", 0.5),)},
        {"decay_factors": (("fcc.*", 0.5),)},
        {"optimizer": "muon", "muon_keys": ("fcc.*",)},
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(values):
    recipe = dataclasses.replace(RECIPE, **values)
    with pytest.raises(InputError, match=r"'fcc\.\*' matches no parameter; expected .* as bn1"):
        make_optimizer(recipe, lambda _: 0.1).init(PARAMS)


# The step


RESNET = create_model("resnet20_cifar", depth=8, num_classes=4)
LENET = create_model("lenet5", num_classes=4)
SOFTMAX = create_model("softmax_regression", num_classes=4, input_shape=(32, 32, 3))


def trained(recipe, devices, count=2, model=RESNET, average=None, change=lambda b: b):
    """Return the state after some steps on images of noise, in batches that `change` changes."""
    optimizer = make_optimizer(recipe, lambda _: jnp.float32(0.02))
    parallel = DataParallel(devices=jax.devices()[:devices])
    variables = init_variables(model, (32, 32, 3), recipe, 0)
    state = parallel.replicate(create_state(variables, optimizer, recipe))
    step = parallel.map(
        make_train_step(model, optimizer, PIXELS, recipe, average=average), donate_state=True
    )
    rng = np.random.default_rng(0)
    history = []
    for _ in range(count):
        images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
        batch = {"image": images, "label": np.arange(16, dtype=np.int32) % 4}
        state, metrics = step(state, parallel.shard(change(batch)))
        history.append(jax.device_get((state, metrics)))
    return history


def assert_equal_states(one, other, atol):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(devices):
    """A network without batch norm gets equal gradients, except for the order of the sums."""
    whole = trained(RECIPE, devices, model=LENET)
    recipe = dataclasses.replace(RECIPE, gradient_accumulation=4)
    assert_equal_states(trained(recipe, devices, model=LENET), whole, atol=1e-6)


@pytest.mark.slow
def test_synchronised_batch_norm_sees_the_whole_batch():
    recipe = dataclasses.replace(RECIPE, sync_batch_norm=True)
    ((one, _),) = trained(RECIPE, 1, count=1)
    ((four, _),) = trained(recipe, 4, count=1)
    ((own, _),) = trained(RECIPE, 4, count=1)
    assert_equal_states(four.model_state, one.model_state, atol=1e-5)
    assert_equal_states(four.params, one.params, atol=1e-4)
    last = ("batch_stats", "layer3", "0", "bn2", "var")
    leaf = [state.model_state for state in (one, own)]
    for name in last:
        leaf = [tree[name] for tree in leaf]
    assert np.abs(leaf[0] - leaf[1]).max() > 1e-3


def test_the_moving_average_copies_in_warm_up_and_then_trails_behind(tmp_path):
    """The average is also what the other scripts load."""
    recipe = dataclasses.replace(RECIPE, ema_decay=0.75, ema_steps=2, warmup_epochs=0.5)
    rule = averaging_rule(recipe, steps_per_epoch=6)  # 3 steps of warm-up
    history = [state for state, _ in trained(recipe, 2, count=7, average=rule)]
    expected = newest = None
    for step, state in enumerate(history):
        newest = {"params": state.params, "model_state": state.model_state}
        if step % 2 == 0:
            share = 1 if step < 3 else 0.25
            old = expected or newest
            expected = jax.tree.map(lambda a, b, s=share: a + s * (b - a), old, newest)
        assert_equal_states(state.average, expected, atol=1e-6)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(history[-1], {})
    restored = checkpoints.restore_variables()
    checkpoints.close()
    assert_equal_states(restored, history[-1].average_variables, atol=0)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), newest, expected)
    assert min(jax.tree.leaves(moved)) > 0
    assert averaging_rule(RECIPE, 6) is None


@pytest.mark.parametrize("values", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
@pytest.mark.slow
def test_the_step_trains_on_blended_images_and_classes(values):
    """The metrics show which images the network saw."""
    recipe = dataclasses.replace(RECIPE, random_erasing=0.5, **values)
    history = trained(recipe, 1, count=2, model=LENET)
    variables = {"params": history[0][0].params}
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 32, 32, 3), np.uint8) for _ in range(2)][1]
    images = normalize(jnp.asarray(images), *PIXELS)
    key = jax.random.key(0)
    for number in (1, 0, recipe.gradient_accumulation):  # step, device, of augmentation
        key = jax.random.fold_in(key, number)
    erasing, blending = jax.random.split(key)
    images = batch_augmentation.random_erasing(images, erasing, 0.5)
    images, targets = batch_augmentation.mixup_or_cutmix(
        images, jax.nn.one_hot(np.arange(16) % 4, 4), blending, recipe.mixup, recipe.cutmix
    )
    logits: Any = LENET.apply(variables, images, train=True)
    expected = -(targets * jax.nn.log_softmax(logits)).sum(1).mean()
    assert float(history[1][1]["loss"]) == pytest.approx(float(expected), rel=1e-5)
    right = (logits.argmax(1) == targets.argmax(1)).mean()
    assert float(history[1][1]["top1"]) == pytest.approx(float(right))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_step_crops_as_the_batch_says(parts):
    recipe = dataclasses.replace(RECIPE, gradient_accumulation=parts)
    random = np.random.default_rng(1)
    offset = random.integers(0, 9, (16, 2), np.int32)
    mirrored = np.arange(16) % 3 == 0

    def with_places(batch):
        return batch | {"offset": offset, "mirrored": mirrored}

    def cropped_before(batch):
        padded = np.pad(batch["image"], ((0, 0), (4, 4), (4, 4), (0, 0)))
        images = [
            image[y : y + 32, x : x + 32] for image, (y, x) in zip(padded, offset, strict=True)
        ]
        images = [im[:, ::-1] if flip else im for im, flip in zip(images, mirrored, strict=True)]
        return batch | {"image": np.stack(images)}

    assert recipe.preprocessing.pad == 4
    inside, before, plain = (
        trained(recipe, 2, model=SOFTMAX, change=change)
        for change in (with_places, cropped_before, lambda batch: batch)
    )
    assert_equal_states(inside[-1][0].params, before[-1][0].params, atol=1e-7)
    assert float(inside[-1][1]["loss"]) != pytest.approx(float(plain[-1][1]["loss"]), rel=1e-4)
