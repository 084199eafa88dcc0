"""Test the step on one and on many devices, schedules, checkpoints, and the loop."""

import dataclasses
import itertools
import json
import os
import signal
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from feeds import eval_batches, in_memory, train_batches
from flaxnets import InputError, create_model, data, to_torch
from flaxnets.layers import BatchNorm, Conv, Linear, max_pool
from flaxnets.recipes import Preprocessing, Recipe, recipe_for
from flaxnets.runs import feed as feed_module
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.evaluation import evaluate
from flaxnets.runs.feed import feed_from_source
from flaxnets.runs.loop import Interrupted, fit
from flaxnets.runs.progress import TIMED
from flaxnets.runs.workdir import Workdir
from flaxnets.training.batch_norms import check_batch_norms
from flaxnets.training.objective import losses, scores
from flaxnets.training.on_device import normalize
from flaxnets.training.optimizer import after_epoch, learning_rate_schedule, make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Feed, Program, make_program
from flaxnets.training.state import create_state, fresh_variables, init_variables
from flaxnets.training.step import make_eval_step, make_train_step

RECIPE = Recipe(
    batch_size=16, epochs=2, learning_rate=0.05, schedule="cosine",
    preprocessing=Preprocessing(image_size=28, resize=32, pad=2),
)  # fmt: skip
STATISTICS = ((0.3,), (0.4,))
STATISTICS_RGB = ((0.5,) * 3, (0.25,) * 3)


def batches(count, size=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "image": rng.integers(0, 256, (size, 28, 28, 1), np.uint8),
            "label": rng.integers(0, 10, size).astype(np.int32),
        }


def run(model, mapping, devices, steps=20, recipe=RECIPE):
    parallel = DataParallel(mapping, jax.devices()[:devices])
    optimizer = make_optimizer(recipe, learning_rate_schedule(recipe, 10))
    step = parallel.map(make_train_step(model, optimizer, STATISTICS, recipe), donate_state=True)
    variables = init_variables(model, (28, 28, 1), recipe, seed=0)
    state = parallel.replicate(create_state(variables, optimizer, recipe))
    history = []
    for batch in batches(steps):
        state, metrics = step(state, parallel.shard(batch))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def on_one_device():
    return run(create_model("lenet5"), "shard_map", 1)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_mappings_and_device_counts_give_the_same_parameters(mapping, devices, on_one_device):
    """Twenty steps of momentum SGD agree to 2e-5 for values up to 0.5: sums in another order."""
    expected, losses = on_one_device
    state, history = run(create_model("lenet5"), mapping, devices)
    assert int(state.step) == 20
    for leaf, wanted in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, atol=2e-5)
    for name in ("loss", "top1", "top5"):
        ours, theirs = [m[name] for m in history], [m[name] for m in losses]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        state.params,
        jax.device_get(init_variables(create_model("lenet5"), (28, 28, 1), RECIPE, 0)["params"]),
    )
    assert min(jax.tree.leaves(moved)) > 1e-3


class Normed(nn.Module):
    """A network with batch norm and dropout, the two layers that see how a batch is split."""

    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(10, name="fc")(x.mean((1, 2)))


def test_running_statistics_are_the_mean_over_devices():
    """Each device normalises with its own images; afterwards all have equal statistics."""
    state, _ = run(Normed(), "shard_map", 4, steps=1)
    (batch,) = batches(1)
    images = (batch["image"] / 255 - 0.3) / 0.4
    own = images.reshape(4, -1)
    norm = state.model_state["batch_stats"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * own.mean(), rtol=1e-4)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * own.var(1, ddof=1).mean(), rtol=1e-4)


class Small(nn.Module):
    """A network with one of each layer that some platform computes by another formulation."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(16, 3, 2, name="conv")(x)
        x = BatchNorm(use_running_average=not train, name="norm")(x, relu=True)
        x = max_pool(3, 2, 1)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return Linear(self.num_classes, patch=(7, 7), name="fc")(x)[:, 0, 0]


@pytest.fixture(scope="module")
def without_switches():
    return run(Small(), "shard_map", 1, steps=1)


@pytest.mark.parametrize("switch", parity.SWITCHES)
@pytest.mark.slow
def test_a_step_works_under_jaxs_switches(switch, without_switches):
    with parity.SWITCHES[switch]():
        found = run(Small(), "shard_map", 1, steps=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        found,
        without_switches,
    )


def test_every_augmentation_of_a_step_is_traced_under_strict_rank_promotion():
    recipe = dataclasses.replace(
        RECIPE, mixup=0.2, cutmix=1.0, random_erasing=0.5, ema_decay=0.9, label_smoothing=0.1,
        gradient_accumulation=2, optimizer="lamb", clip_norm=1.0, sync_batch_norm=True,
    )  # fmt: skip
    feed = Feed(
        train=lambda _: iter(()), test=lambda: iter(()), train_size=16, input_shape=(28, 28, 1),
        statistics=STATISTICS,
    )  # fmt: skip
    (batch,) = batches(1)
    batch |= {"offset": np.zeros((16, 2), np.int32), "mirrored": np.zeros(16, bool)}
    with jax.numpy_rank_promotion("raise"):
        program = make_program(Small(), recipe, feed, DataParallel())
        shapes = program.state_shapes()
        state, metrics = jax.eval_shape(program.train_step, shapes, batch)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert set(metrics) == {"loss", "top1", "top5"}


def test_a_state_is_float32_whatever_the_flag():
    recipe = dataclasses.replace(RECIPE, ema_decay=0.9, optimizer="adamw")
    with jax.enable_x64():
        state, _ = run(Small(), "shard_map", 1, steps=1, recipe=recipe)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


@pytest.mark.parametrize(
    ("fields", "devices", "advice"),
    [
        ({"batch_size": 8}, 8, "batch size 16, larger images, sync batch norm, or freeze {}"),
        ({"batch_size": 1}, 1, "batch size 2, larger images, or freeze {}"),
        ({"batch_size": 1, "sync_batch_norm": True}, 1, "size 2, larger images, or freeze {}"),
        (
            {"batch_size": 8, "gradient_accumulation": 4}, 2,
            "batch size 16, larger images, sync batch norm, or freeze {}",
        ),
        ({"batch_size": 8, "freeze": ("layer3.*",)}, 8, "batch size 16"),
        ({"batch_size": 16}, 8, None),
        ({"batch_size": 8, "sync_batch_norm": True}, 8, None),
        ({"batch_size": 8, "freeze": ("layer4.*",)}, 8, None),
        ({"batch_size": 8, "size": 33}, 8, None),
    ],
)  # fmt: skip
def test_a_batch_norm_that_sees_one_value_is_refused(fields, devices, advice):
    """torch raises "Expected more than 1 value per channel when training" in this case."""
    size = fields.pop("size", 32)
    model = create_model("resnet18")
    recipe = dataclasses.replace(RECIPE, **fields)
    images = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    arguments = (model, variables, recipe, (size, size, 3), devices)
    if advice is None:
        check_batch_norms(*arguments)
        return
    with pytest.raises(InputError) as raised:
        check_batch_norms(*arguments)
    sentence = str(raised.value)
    assert sentence.startswith(
        "batch norm layer4.0.bn1 would see one value of each channel in training (one image"
    )
    assert advice.format("'layer4.0.bn1.*'") in sentence
    parts = fields.get("gradient_accumulation", 1)
    assert ("on each device" in sentence) == (devices > 1)
    assert (f"in each of the {parts} parts of a step" in sentence) == (parts > 1)


def test_dropout_differs_between_devices_and_steps():
    """All devices and steps have the same image, so that only the masks can differ."""

    seen = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones((64,)))
            if train:
                jax.debug.callback(lambda m: seen.append(tuple(np.asarray(m))), mask)
            return Linear(10)(x.reshape(x.shape[0], -1))

    model = Spy()
    optimizer = make_optimizer(RECIPE, lambda _: 0.0)
    parallel = DataParallel("shard_map", jax.devices()[:2])
    step = parallel.map(make_train_step(model, optimizer, STATISTICS, RECIPE))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    state = parallel.replicate(create_state(variables, optimizer, RECIPE))
    for batch in batches(2):
        state, _ = step(state, parallel.shard(batch))
    jax.effects_barrier()
    assert len(set(seen)) == 4


def test_auxiliary_logits_join_the_loss():
    class TwoHeads(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = x.reshape(x.shape[0], -1)
            aux = Linear(10, name="head")(x)
            if train:
                self.sow("aux_logits", "aux", aux)
            return Linear(10, name="main")(x)

    def gradient(aux_weight):
        recipe = dataclasses.replace(RECIPE, momentum=0.0, weight_decay=0.0, aux_weight=aux_weight)
        optimizer = make_optimizer(recipe, lambda _: 1.0)
        model, parallel = TwoHeads(), DataParallel(devices=jax.devices()[:1])
        variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        state = parallel.replicate(create_state(variables, optimizer, RECIPE))
        step = parallel.map(make_train_step(model, optimizer, STATISTICS, recipe))
        after, _ = step(state, parallel.shard(next(batches(1))))
        return jax.tree.map(lambda a, b: a - b, variables["params"], after.params)

    without, third, whole = (gradient(weight) for weight in (0.0, 0.3, 1.0))
    assert float(jnp.abs(without["head"]["kernel"]).max()) == 0
    np.testing.assert_allclose(
        third["head"]["kernel"], 0.3 * whole["head"]["kernel"], rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(third["main"]["kernel"], without["main"]["kernel"], atol=1e-7)


def test_scores_count_the_five_best_and_no_ties():
    logits = jnp.array([[1.0, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 0]])
    result = scores(logits, jnp.array([0, 1, 3]))
    np.testing.assert_array_equal(result["top1"], [0, 0, 0])
    np.testing.assert_array_equal(result["top5"], [0, 1, 1])
    np.testing.assert_allclose(result["loss"][2], np.log(6), rtol=1e-6)
    np.testing.assert_array_equal(scores(logits, jnp.array([5, 0, 0]))["top1"], [1, 1, 1])
    assert float(scores(jnp.full((1, 6), jnp.nan), jnp.array([0]))["top5"][0]) == 0


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.slow
def test_what_is_frozen_keeps_its_bits(remat):
    """Frozen parameters and running statistics keep their bits and have no optimiser state.

    The other parameters move as if the frozen part were a constant function.
    """
    recipe = dataclasses.replace(
        recipe_for("resnet20_cifar", "small images"),
        freeze=("conv1.*", "bn1.*", "layer[12].*"),
        rate_factors=(("*", 0.5), ("fc.*", 2.0)),
    )
    model = create_model("resnet20_cifar", remat=remat)
    optimizer = make_optimizer(recipe, lambda _: 0.1)
    variables = init_variables(model, (16, 16, 3), recipe, 0)
    state = create_state(variables, optimizer, recipe)
    parallel = DataParallel(devices=jax.devices()[:3])
    step = parallel.map(make_train_step(model, optimizer, STATISTICS_RGB, recipe))
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    batch = parallel.shard({"image": images, "label": np.arange(6, dtype=np.int32)})
    before = to_torch({"params": state.params, **state.model_state})
    state, _ = step(parallel.replicate(state), batch)
    after = to_torch({"params": state.params, **state.model_state})
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith(("layer3.", "fc."))}
    momentum = {leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
    trained = [v for k, v in variables["params"].items() if k in ("layer3", "fc")]
    assert momentum == {leaf.size for leaf in jax.tree.leaves(trained) if leaf.ndim > 1}

    # The rate of fc is four times that of layer3, so at equal gradients its step is, too.
    twice = dataclasses.replace(recipe, rate_factors=(("*", 0.5),))
    other = make_optimizer(twice, lambda _: 0.1)
    step = parallel.map(make_train_step(model, other, STATISTICS_RGB, twice))
    start = parallel.replicate(create_state(variables, other, recipe))
    slow = to_torch({"params": step(start, batch)[0].params})
    for key, factor in (("fc.weight", 4.0), ("layer3.0.conv1.weight", 1.0)):
        np.testing.assert_allclose(
            after[key] - before[key], factor * (slow[key] - before[key]), rtol=1e-3, atol=1e-6
        )


def test_a_pattern_that_freezes_nothing_is_refused():
    recipe = dataclasses.replace(RECIPE, freeze=("feature.*",))
    variables = init_variables(create_model("lenet5"), (28, 28, 1), recipe, 0)
    with pytest.raises(InputError, match=r"freeze 'feature.\*' matches no parameter; expected"):
        create_state(variables, make_optimizer(recipe, lambda _: 0.1), recipe)


def test_losses_of_classes_and_of_numbers():
    outputs, classes = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), jnp.array([0, 2])
    expected = [np.log(np.exp([2, 0, 1]).sum()) - 2, np.log(3)]
    np.testing.assert_allclose(losses(outputs, classes, "cross_entropy"), expected, rtol=1e-6)
    np.testing.assert_allclose(losses(outputs, classes, "squared_error"), [1 + 0 + 1, 1])
    smooth = losses(outputs, classes, "squared_error", label_smoothing=0.3)
    np.testing.assert_allclose(smooth, [1.2**2 + 0.1**2 + 0.9**2, 0.1**2 + 0.1**2 + 0.8**2])
    numbers = scores(jnp.array([[3.0], [1.0]]), jnp.array([1.0, 1.5]), "squared_error")
    assert set(numbers) == {"loss"}  # no accuracy without classes
    np.testing.assert_allclose(numbers["loss"], [4, 0.25])


def test_masked_evaluation_counts_every_example_on_every_device_count():
    source = data.open_source("digits")
    model = create_model("lenet5")
    variables = init_variables(model, (28, 28, 1), RECIPE, 0)
    optimizer = make_optimizer(RECIPE, lambda _: 0.0)
    found = []
    for devices, batch_size in ((1, 355), (8, 96), (3, 99)):
        parallel = DataParallel(devices=jax.devices()[:devices])
        feed = feed_from_source(source, RECIPE, parallel, test_batch_size=batch_size)
        step = parallel.map(make_eval_step(model, source.statistics))
        state = parallel.replicate(create_state(variables, optimizer, RECIPE))
        found.append(evaluate(step, state.variables, feed, parallel))
    found, worst = zip(*found, strict=True)
    for name in ("top1", "top5"):
        counts = {round(result[name] * 355, 6) for result in found}
        assert len(counts) == 1
        assert counts.pop().is_integer()
    np.testing.assert_allclose([r["loss"] for r in found], found[0]["loss"], rtol=1e-5)
    (images,) = eval_batches(source, 355, RECIPE.preprocessing)
    pixels = normalize(jnp.asarray(images["image"]), *source.statistics)
    logits: Any = model.apply(variables, pixels)
    expected = np.asarray(losses(logits, jnp.asarray(images["label"]), "cross_entropy"))
    for examples in worst:  # the 16 with the largest losses, those first
        largest = np.sort(expected)[::-1][:16]
        np.testing.assert_allclose([e.loss for e in examples], largest, rtol=1e-5)
        first = examples[0]
        at = int(np.argmin(np.abs(images["image"].astype(int) - first.image).sum((1, 2, 3))))
        assert (first.label, first.output) == (images["label"][at], int(logits[at].argmax()))


def test_plateau_scale_multiplies_the_update():
    recipe = dataclasses.replace(RECIPE, schedule="plateau", patience=1)
    model, parallel = create_model("lenet5"), DataParallel(devices=jax.devices()[:1])
    optimizer = make_optimizer(recipe, lambda _: 0.1)
    step = parallel.map(make_train_step(model, optimizer, STATISTICS, RECIPE))
    state = create_state(init_variables(model, (28, 28, 1), recipe, 0), optimizer, recipe)
    batch = parallel.shard(next(batches(1)))
    reduced = after_epoch(after_epoch(state, recipe, 0.5), recipe, 0.5)
    updates = [
        jax.tree.map(lambda a, b: a - b, step(s, batch)[0].params, s.params)
        for s in map(parallel.replicate, (state, reduced))
    ]
    for whole, tenth in zip(*map(jax.tree.leaves, updates), strict=True):
        np.testing.assert_allclose(tenth, 0.1 * whole, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
@pytest.mark.parametrize("devices", [1, 2])
def test_images_that_stay_on_the_devices_make_the_same_batches(mapping, devices):
    source, preprocessing = data.open_source("digits"), Preprocessing(image_size=8, resize=8, pad=1)
    parallel = DataParallel(mapping, jax.devices()[:devices])
    on_host, kept = (
        train_batches(source, 16, preprocessing, seed=4, parallel=devices)
        for devices in (None, parallel)
    )
    for ours, theirs in itertools.islice(zip(kept, on_host, strict=True), 3):
        ours, theirs = parallel.shard(ours), parallel.shard(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        if mapping == "shard_map":
            assert ours["image"].sharding == theirs["image"].sharding


def test_more_images_than_a_device_has_room_for_stay_on_the_host(monkeypatch):
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    at = np.array([4, 1])
    for limit, kind in [(24, jax.Array), (23, np.ndarray)]:
        monkeypatch.setattr("flaxnets.training.parallel.MAX_KEPT", limit)
        taken = DataParallel(devices=jax.devices()[:1]).keep(images)(at)
        assert isinstance(taken, kind)
        np.testing.assert_array_equal(taken, images[at])


@pytest.mark.parametrize("devices", [1, 8])
def test_the_step_is_compiled_before_its_first_call_and_not_again(devices, caplog):
    model = create_model("softmax_regression")
    recipe = dataclasses.replace(
        RECIPE, preprocessing=dataclasses.replace(RECIPE.preprocessing, image_size=8, resize=8)
    )
    feed = feed_from_source(data.open_source("digits"), recipe)
    parallel = DataParallel(devices=jax.devices()[:devices])
    program, batch = make_program(model, recipe, feed, parallel), next(feed.train(0))
    compiled = "Finished XLA compilation of jit(train_step)"
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for count in (0, 1):
            assert sum(text.startswith(compiled) for text in caplog.messages) == count
            program.compile_step(batch)
        program.train_step(program.initial_state(), parallel.shard(batch))
    assert sum(text.startswith(compiled) for text in caplog.messages) == 1


@pytest.mark.parametrize("average", [False, True])
def test_a_run_starts_from_the_variables_that_it_is_given(average):
    model, source = create_model("lenet5"), data.open_source("digits")
    recipe = dataclasses.replace(RECIPE, ema_decay=0.9 if average else 0.0)
    feed = feed_from_source(source, RECIPE)
    parallel = DataParallel(devices=jax.devices()[:2])
    given = init_variables(model, (28, 28, 1), recipe, seed=7)
    for initial in (None, given):
        program = make_program(model, recipe, feed, parallel, seed=0, initial=initial)
        state, shapes = program.initial_state(), program.state_shapes()
        expected = given if initial else init_variables(model, (28, 28, 1), recipe, seed=0)
        jax.tree.map(np.testing.assert_array_equal, state.variables, expected)
        assert (state.average is not None) == average
        assert jax.tree.structure(state) == jax.tree.structure(shapes)
        for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
            assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


@pytest.mark.parametrize("initialization", ["source", "he_normal"])
def test_a_run_starts_from_the_same_bits_on_any_number_of_devices(initialization):
    model, recipe = (
        create_model("lenet5"),
        dataclasses.replace(RECIPE, initialization=initialization),
    )
    feed = feed_from_source(data.open_source("digits"), recipe)
    expected = jax.jit(lambda: fresh_variables(model, (28, 28, 1), recipe, seed=5))()
    for count in (1, 2, 8):
        parallel = DataParallel(devices=jax.devices()[:count])
        state = make_program(model, recipe, feed, parallel, seed=5).initial_state()
        assert len(jax.tree.leaves(state)[0].devices()) == count
        jax.tree.map(np.testing.assert_array_equal, state.variables, expected)


def test_he_initialisation_draws_every_kernel():
    recipe = dataclasses.replace(RECIPE, initialization="he_normal")
    params = init_variables(create_model("lenet5"), (28, 28, 1), recipe, 0)["params"]
    kernel = params["classifier"]["0"]["patch_kernel"]
    assert abs(float(kernel.std()) / np.sqrt(2 / 256) - 1) < 0.03
    assert float(jnp.abs(params["classifier"]["0"]["bias"]).max()) == 0
    again = init_variables(create_model("lenet5"), (28, 28, 1), recipe, 1)["params"]
    assert float(jnp.abs(again["classifier"]["0"]["patch_kernel"] - kernel).max()) > 0.1


# The loop


def digits_feed(recipe=RECIPE, shorten=320):
    feed = feed_from_source(data.open_source("digits"), recipe, test_batch_size=96)
    return dataclasses.replace(feed, train_size=shorten)


def start(path, recipe=RECIPE, feed=None, devices=1):
    config = {**dataclasses.asdict(recipe), "arch": "lenet5"}
    parallel = DataParallel(devices=jax.devices()[:devices])
    model, feed = create_model("lenet5"), feed or digits_feed(recipe)
    with Workdir(path, config) as workdir:
        return fit(make_program(model, recipe, feed, parallel), workdir)


def saved(path):
    return jax.tree.leaves(Checkpoints(path / "checkpoints").restore_variables())


def logged(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    """A run that is stopped in its second epoch and continued equals one that never stopped."""
    whole = start(tmp_path / "whole")

    feed = digits_feed()

    def interrupting(step):
        for number, batch in enumerate(feed.train(step), step):
            if number == 27:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted, match="stopped and saved at step 28 of 40"):
        start(tmp_path / "cut", feed=dataclasses.replace(feed, train=interrupting))
    resumed = start(tmp_path / "cut")
    assert {k: v for k, v in resumed.items() if k not in TIMED} == {
        k: v for k, v in whole.items() if k not in TIMED
    }
    for ours, theirs in zip(saved(tmp_path / "cut"), saved(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [row["epoch"] for row in logged(tmp_path / "cut")] == [1, 2]


def leave_batches_on_the_host(monkeypatch):
    """Let the step transfer NumPy arrays by itself."""
    shard = DataParallel.shard
    monkeypatch.setattr(
        DataParallel, "shard", lambda self, batch: jax.device_get(shard(self, batch))
    )


def leave_the_state_on_the_host(monkeypatch):
    made = Program.initial_state
    monkeypatch.setattr(Program, "initial_state", lambda self: jax.device_get(made(self)))


def compute_while_reading(monkeypatch):
    """Let the feed compute on the device between batches."""
    made = feed_module.train_batches

    def asking(*arguments, **options):
        for batch in made(*arguments, **options):
            yield batch | {"image": np.asarray(jnp.asarray(batch["image"]) + 0)}

    monkeypatch.setattr(feed_module, "train_batches", asking)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize(
    "mistake",
    [None, leave_batches_on_the_host, leave_the_state_on_the_host, compute_while_reading],
)
def test_nothing_but_batches_travels_to_the_devices(
    mistake, devices, mapping, tmp_path, monkeypatch
):
    """Without a mistake a run ends; with one it is refused."""
    recipe = dataclasses.replace(RECIPE, batch_size=15, epochs=1)
    parallel = DataParallel(mapping, jax.devices()[:devices])
    source = data.open_source("digits")

    def run():
        feed = dataclasses.replace(feed_from_source(source, recipe, parallel), train_size=45)
        with Workdir(tmp_path, {}) as workdir:
            return fit(make_program(Normed(), recipe, feed, parallel), workdir)

    if mistake is None:
        assert run()["steps"] == 3
        return
    mistake(monkeypatch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run()


def test_nothing_but_batches_travels_in_evaluation(monkeypatch):
    parallel, feed = DataParallel(devices=jax.devices()[:2]), digits_feed()
    program = make_program(create_model("lenet5"), RECIPE, feed, parallel)
    variables = program.initial_state().variables
    means, _ = evaluate(program.eval_step, variables, feed, parallel)
    assert means["loss"] > 0
    leave_batches_on_the_host(monkeypatch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        evaluate(program.eval_step, variables, feed, parallel)


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=5, learning_rate=0.2)
    start(tmp_path, recipe)
    rows = logged(tmp_path)
    best = max(rows, key=lambda row: (row["test_top1"], row["step"]))["step"]
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {best, rows[-2]["step"], rows[-1]["step"]}


@pytest.mark.slow
def test_linear_regression_comes_near_least_squares(tmp_path):
    """Regression on the diabetes data uses the same loop and step.

    The error on the training split is within 2% of the exact solution's, and the checkpoint with
    the smallest error is kept.
    """
    source = in_memory("diabetes")
    recipe = recipe_for("linear_regression", "rows")
    feed = feed_from_source(source, recipe, test_batch_size=96)
    workdir = Workdir(tmp_path, {})
    parallel = DataParallel(devices=jax.devices()[:1])
    fit(make_program(create_model("linear_regression"), recipe, feed, parallel), workdir)
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    rows = logged(tmp_path)
    assert min(rows, key=lambda row: row["test_loss"])["step"] in kept
    assert not any("top1" in name for name in rows[-1])

    mean, std = source.statistics
    x = (source.images["train"].reshape(-1, 10) - mean) / std
    target = source.labels["train"]
    params = Checkpoints(tmp_path / "checkpoints").restore_variables()["params"]
    (layer,) = params["classifier"].values()
    error = np.square(x @ layer["kernel"][:, 0] + layer["bias"] - target).mean()
    _, (residual,), *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], target)
    assert residual / len(x) <= error < 1.02 * residual / len(x)


@pytest.mark.slow
def test_a_checkpoint_moves_to_another_number_of_devices(tmp_path):
    one = dataclasses.replace(RECIPE, epochs=1)
    start(tmp_path, one, devices=4)
    before = saved(tmp_path)
    row = start(tmp_path, dataclasses.replace(RECIPE, epochs=2), devices=2)
    assert row["steps"] == 40
    assert any((a != b).any() for a, b in zip(before, saved(tmp_path), strict=True))


def test_saving_copies_what_the_next_step_overwrites(tmp_path):
    """Checkpoints are intact although steps overwrite the state while Orbax writes it."""
    recipe = RECIPE
    optimizer = make_optimizer(recipe, lambda _: 0.5)
    model, parallel = create_model("lenet5"), DataParallel(devices=jax.devices()[:1])
    step = parallel.map(make_train_step(model, optimizer, STATISTICS, RECIPE), donate_state=True)
    variables = init_variables(model, (28, 28, 1), recipe, 0)
    state = parallel.replicate(create_state(variables, optimizer, recipe))
    checkpoints = Checkpoints(tmp_path)
    stream, saved = itertools.cycle(batches(3)), []
    for _ in range(3):
        state, _ = step(state, parallel.shard(next(stream)))
        expected = jax.tree.map(np.array, state.params)
        saved.append(expected)
        checkpoints.save(state, {}, error=1.0)
        for _ in range(2):
            state, _ = step(state, parallel.shard(next(stream)))
        restored = checkpoints.restore_variables()["params"]
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    mean = jax.tree.leaves(checkpoints.restore_mean(2)["params"])
    for a, *leaves in zip(mean, *map(jax.tree.leaves, saved[-2:]), strict=True):
        np.testing.assert_array_equal(a, np.mean(leaves, 0, np.float64).astype(np.float32))
    with pytest.raises(InputError, match=r"cannot average 9 checkpoints: .* has [23]; expected"):
        checkpoints.restore_mean(9)
    checkpoints.close()


def test_a_diverging_run_stops_with_the_step_and_the_rate(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e9, schedule="constant")
    with pytest.raises(InputError, match=r"the loss is (nan|inf) after step \d+ .*rate 1e\+09"):
        start(tmp_path, recipe)


def test_a_workdir_of_something_else_is_refused_untouched(tmp_path):
    config = {**dataclasses.asdict(RECIPE), "arch": "lenet5"}
    Workdir(tmp_path, config)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"holds a run with arch 'lenet5', not 'vgg11'; choose"):
        Workdir(tmp_path, {**config, "arch": "vgg11"})
    with pytest.raises(InputError, match="holds a run with batch size 16, not 32"):
        Workdir(tmp_path, {**config, "batch_size": 32})
    Workdir(tmp_path, {**config, "batch_size": 16})
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    Workdir(tmp_path, {**config, "epochs": 9})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; expected a directory"):
        Workdir(tmp_path / "file", config)


def test_recipes_refuse_impossible_values():
    for values, sentence in [
        ({"batch_size": 0}, "batch size is 0; expected a positive number"),
        ({"weight_decay": -1.0}, "weight decay is -1.0; expected zero or more"),
    ]:
        with pytest.raises(InputError, match=sentence):
            dataclasses.replace(RECIPE, **values).check()
    with pytest.raises(InputError, match="resize 100 is smaller than the crop of 224 pixels"):
        Preprocessing(resize=100).check()
    with pytest.raises(InputError, match=r"batch size 12 does not divide over 8 dev.* such as 16"):
        DataParallel().check_batch_size(12)
