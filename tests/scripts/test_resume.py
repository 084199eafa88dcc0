"""Test accidents of a run.

They are kills, damaged checkpoints, diverging steps, broken pictures, a second run in the same
workdir, full disks and files that no run wrote.
"""

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from PIL import Image

from feeds import eval_batches, train_batches
from flaxnets import InputError, data
from flaxnets.errors import InputWarning
from flaxnets.inference.run import load_run
from flaxnets.layers import BatchNorm, Linear
from flaxnets.recipes import Preprocessing, Recipe
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.checksums import checksums
from flaxnets.runs.feed import feed_from_source
from flaxnets.runs.loop import fit
from flaxnets.runs.options import RunOptions
from flaxnets.runs.progress import TIMED
from flaxnets.runs.same_run import default_workdir
from flaxnets.runs.workdir import Workdir
from flaxnets.training.guard import skipping_non_finite
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Feed, make_program
from flaxnets.training.state import create_state
from scripts import output, script

RECIPE = Recipe(
    batch_size=16, epochs=2, learning_rate=0.05, patience=1,
    preprocessing=Preprocessing(image_size=8, resize=8, pad=1),
)  # fmt: skip
PHOTOGRAPHS = Preprocessing(image_size=32, resize=40)


class Dropped(nn.Module):
    """A network with batch norm and dropout, so that a run has a state besides its parameters."""

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return Linear(10, name="fc")(x.reshape(x.shape[0], -1))


def digits_feed():
    """Return a feed of digits with ten steps in an epoch."""
    feed = feed_from_source(data.open_source("digits"), RECIPE, test_batch_size=355)
    return dataclasses.replace(feed, train_size=160)


def features_feed(poisoned=()):
    """Return a feed of float images with a NaN in the steps `poisoned`, counted from one."""

    def train(step):
        for number in itertools.count(step):
            rng = np.random.default_rng(number)
            image = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
            image[0, 0, 0, 0] = math.nan if number + 1 in poisoned else 1
            yield {"image": image, "label": rng.integers(0, 10, 16).astype(np.int32)}

    def test():
        yield next(train(1_000_000)) | {"mask": np.ones(16, np.float32)}

    return Feed(train, test, 160, (8, 8, 1), ((0.0,), (1.0,)))


def start(path, feed, *, skip_non_finite=False, **options):
    parallel = DataParallel(devices=jax.devices()[:1])
    program = make_program(Dropped(), RECIPE, feed, parallel, skip_non_finite=skip_non_finite)
    with Workdir(path, {"arch": "dropped"}) as workdir:
        return fit(program, workdir, options=RunOptions(**options))


def saved(path):
    variables = Checkpoints(path / "checkpoints", read_only=True).restore_variables()
    return {key: zlib.crc32(value.tobytes()) for key, value in flat(variables).items()}


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def logged(path):
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def listed(path):
    return {int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit()}


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place + 100] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped bit": flip,
    "truncated": lambda file, place: os.truncate(file, place + 100),
    "missing": lambda file, place: file.unlink(),
}


def damage(checkpoint, kind="flipped bit"):
    """Damage the last layer's kernel in the files of a checkpoint."""
    base = f"file://{checkpoint}/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    kernel = store.read("params.fc.kernel/0.0").result().value
    for file in (checkpoint / "state").rglob("d/*"):
        place = file.read_bytes().find(kernel)
        if place >= 0:
            DAMAGES[kind](file, place)


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Killed(BaseException):
    pass


def killing(feed, at, path, kept=()):
    """Return the feed of a process that dies when it asks for the batch of step `at`.

    Before that it waits until the run in `path` has the checkpoints `kept`, because writing and
    deleting would otherwise continue in this process.
    """

    def train(step):
        for number, batch in enumerate(feed.train(step), step):
            if number == at:
                while listed(path) != set(kept):
                    time.sleep(0.01)
                raise Killed
            yield batch

    return dataclasses.replace(feed, train=train)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    """Parameters, statistics and metrics equal those of a run without accidents.

    The run is killed before its first checkpoint, in an epoch, between epochs with half a line of
    metrics written, and with its newest checkpoint damaged. It has dropout, augmentation and the
    plateau rule.
    """
    feed = digits_feed()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(whole, feed)
    for at, kept in ((2, ()), (7, (4,)), (13, (8, 10, 12))):
        with pytest.raises(Killed):
            start(cut, killing(feed, at, cut, kept), checkpoint_steps=4, keep=3)
        assert not list(cut.glob("*.new"))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    damaged = contents(cut / "checkpoints" / "12")
    damage(cut / "checkpoints" / "12")
    with pytest.warns(InputWarning, match=r"checkpoint 12 .* damaged .*; checkpoint 10 is used"):
        start(cut, feed, checkpoint_steps=4)
    assert saved(cut) == saved(whole)
    assert logged(cut) == logged(whole)
    assert [row["epoch"] for row in logged(cut)] == [1, 2]
    aside = contents(cut / "checkpoints_damaged" / "12")
    assert aside.keys() == damaged.keys()
    assert sum(aside[name] != damaged[name] for name in aside) == 1


def test_tensorboard_is_told_where_the_run_went_on(tmp_path, monkeypatch):
    """This includes a run continued within a second, although logs are named by seconds."""
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    from flaxnets.data.tfds import tf

    Event = vars(event_pb2)["Event"]  # which protobuf makes as it is imported

    # The clock stands still, at the present time. A writer of an earlier test waits for its next
    # flush by the true clock, and cannot wait for years.
    now = time.time()
    monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: now))
    feed = features_feed()
    dying = killing(feed, 9, tmp_path, kept=(6,))
    with pytest.raises(Killed):
        start(tmp_path, dying, checkpoint_steps=6, log_every=1)
    start(tmp_path, feed)
    starts = []
    for file in sorted((tmp_path / "tensorboard").iterdir()):
        events = [Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))]
        starts += [e.step for e in events if e.session_log.status == 1]
    assert starts == [1, 7]  # TensorBoard drops what older files have from there on


# Damaged checkpoints


def small_state():
    optimizer = make_optimizer(RECIPE, lambda _: 0.1)
    variables = Dropped().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return jax.device_put(create_state(variables, optimizer, RECIPE), jax.devices()[0])


def three_checkpoints(path):
    state, checkpoints = small_state(), Checkpoints(path, keep=3)
    for step in (1, 2, 3):
        params = jax.tree.map(lambda x, step=step: x + step, state.params)
        state = state.replace(step=jnp.asarray(step, jnp.int32), params=params)
        checkpoints.save(state, {"sums": {"loss": 0.1 + step}})
    checkpoints.close()
    return state


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kind, tmp_path):
    path = tmp_path / "checkpoints"
    state = three_checkpoints(path)
    damage(path / "3", kind)
    (path / "2" / "position" / "metadata").write_text("{")
    (path / "4.orbax-checkpoint-tmp-0").mkdir()  # half of one, after a kill
    before = contents(tmp_path)

    with pytest.warns(InputWarning, match="damaged") as notes:
        variables = Checkpoints(path, read_only=True).restore_variables()
    for step, note in zip((3, 2), notes, strict=True):
        start, end = f"checkpoint {step} in {path} is damaged (", "); checkpoint 1 is used instead"
        assert str(note.message).startswith(start)
        assert str(note.message).endswith(end)
    # The missing file is found before Orbax reads many at a time and some of its threads fail.
    without_file = f"checkpoint 3 in {path} is damaged (a file with "
    assert (kind == "missing") == str(notes[0].message).startswith(without_file)
    np.testing.assert_allclose(
        variables["params"]["fc"]["bias"], state.params["fc"]["bias"] - (2 + 3), rtol=1e-5
    )
    assert contents(tmp_path) == before

    checkpoints = Checkpoints(path)
    with pytest.warns(InputWarning, match="damaged") as notes:
        restored, position = checkpoints.restore(state)
    for step, note in zip((3, 2), notes, strict=True):
        moved = f") and was moved to {path}_damaged/{step}; checkpoint 1 is"
        assert moved in str(note.message)
    assert int(restored.step) == 1
    assert position == {"sums": {"loss": 1.1}}
    assert sorted(contents(tmp_path).values()) == sorted(before.values())
    checkpoints.save(state, {})  # step 3 again
    checkpoints.close()
    assert int(Checkpoints(path).restore(state)[0].step) == 3


def test_other_dtypes_are_named_and_are_no_damage(tmp_path):
    """Such is a run that was trained under JAX_ENABLE_X64 when that decided parameters' dtype."""
    state, path = small_state(), tmp_path / "checkpoints"
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
        checkpoints = Checkpoints(path)
        checkpoints.save(state.replace(params=jax.tree.map(jnp.asarray, wide)), {"sums": {}})
        checkpoints.close()
        restored = Checkpoints(path, read_only=True).restore_variables()["params"]
        jax.tree.map(np.testing.assert_array_equal, restored, wide)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(restored)} == {"float64"}
    sentence = r"checkpoint 0 in \S+ has params/\S+ in float64; expected float32: "
    with pytest.raises(InputError, match=sentence + "set JAX_ENABLE_X64=1, as when it was"):
        Checkpoints(path, read_only=True).restore_variables()
    with pytest.raises(InputError, match=sentence + "start another run"):
        Checkpoints(path).restore(state)
    assert not (tmp_path / "checkpoints_damaged").exists()


def test_a_checkpoint_deleted_while_they_are_listed_is_no_error(tmp_path, monkeypatch):
    """A run that is still training may delete its oldest checkpoints while they are read."""
    path = tmp_path / "checkpoints"
    three_checkpoints(path)
    whole = saved(tmp_path)
    metadata: Any = ocp.path.step.Metadata
    commit_timestamp = metadata.commit_timestamp.fget

    def deleted(of):
        if of.path.name == "1":
            shutil.rmtree(of.path)
        return commit_timestamp(of)

    monkeypatch.setattr(metadata, "commit_timestamp", property(deleted))
    assert saved(tmp_path) == whole
    assert listed(tmp_path) == {2, 3}


def test_where_every_checkpoint_is_damaged_nothing_is_touched(tmp_path):
    path = tmp_path / "checkpoints"
    state = three_checkpoints(path)
    for step in (1, 2, 3):
        damage(path / str(step))
    before = contents(tmp_path)
    for read in (lambda: Checkpoints(path).restore(state), Checkpoints(path).restore_variables):
        with pytest.raises(InputError, match=r"every checkpoint in .* is damaged \(3: .*; 2: .*1:"):
            read()
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        Checkpoints(tmp_path / "none", read_only=True).restore_variables()
    assert not (tmp_path / "none").exists()


def test_checksums_see_every_bit_of_every_array():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.zeros((), jnp.bfloat16), np.ones(3))}
    sums = checksums(tree)
    assert list(sums) == ["a", "b/0", "b/1"]
    assert sums["a"] == zlib.crc32(np.arange(6, dtype=np.float32).tobytes())
    negative = checksums({"a": -tree["a"], "b": (-tree["b"][0], tree["b"][1])})
    assert [sums[name] == negative[name] for name in sums] == [False, False, True]


# Steps that are not finite


def test_a_step_that_is_not_finite_changes_only_the_counter():
    optimizer = make_optimizer(RECIPE, lambda _: 0.1)
    variables = {"params": {"w": jnp.ones(3)}, "batch_stats": {"mean": jnp.ones(2)}}
    state = create_state(variables, optimizer, RECIPE)

    def step(state, batch):
        """A step is skipped if its loss, its parameters or its statistics are not finite."""
        return state.replace(
            step=state.step + 1,
            params={"w": state.params["w"] + batch["params"]},
            model_state={"batch_stats": {"mean": jnp.full(2, batch["statistics"])}},
        ), {"loss": batch["loss"]}

    guarded = jax.jit(skipping_non_finite(step))
    fine = {"params": 1.0, "statistics": 2.0, "loss": 3.0}
    after, metrics = guarded(state, fine)
    assert metrics["skipped"] == 0
    assert after.params["w"][0] == 2
    for broken in ("params", "statistics", "loss"):
        for value in (math.nan, math.inf):
            after, metrics = guarded(state, fine | {broken: value})
            assert metrics["skipped"] == 1
            assert int(after.step) == 1
            kept = jax.tree.map(np.array_equal, after.replace(step=state.step), state)
            assert all(jax.tree.leaves(kept))


def test_a_run_stops_at_a_loss_that_is_not_finite_and_names_the_checkpoint(tmp_path):
    feed = features_feed(poisoned=(9,))
    sentence = (
        rf"the loss is nan after step 9 \(learning rate 0.05\), and the checkpoint of step 8 in "
        rf"{tmp_path}/checkpoints is intact; train with a lower learning rate in another "
        rf"workdir, or skip such steps \(on nan skip\)"
    )
    for _ in range(2):  # the second begins at step 8
        with pytest.raises(InputError, match=sentence):
            start(tmp_path, feed, checkpoint_steps=4)
    with pytest.warns(InputWarning, match=r"step 9 is skipped, because its loss \(nan\) or its"):
        row = start(tmp_path, feed, skip_non_finite=True)
    assert row["skipped_steps"] == 1
    assert all(np.isfinite(value) for value in row.values())

    with pytest.raises(InputError, match=r"after step 2 .*, and no checkpoint was saved before; "):
        start(tmp_path / "early", features_feed(poisoned=(2,)))


def test_a_step_whose_parameters_diverge_is_not_saved(tmp_path, monkeypatch):
    """A step's loss is that of the parameters before its update, so here it is still finite."""
    feed = features_feed()
    monkeypatch.setattr("flaxnets.training.program.make_train_step", diverging_at_step(8))
    with pytest.raises(InputError, match=r"parameters are not finite after step 8 .*of step 4 in"):
        start(tmp_path, feed, checkpoint_steps=4)
    assert listed(tmp_path) == {4}


def diverging_at_step(number):
    from flaxnets.training.step import make_train_step

    def make(*arguments, **options):
        step = make_train_step(*arguments, **options)

        def diverging(state, batch):
            state, metrics = step(state, batch)
            scale = jnp.where(state.step == number, jnp.nan, 1.0)
            return state.replace(params=jax.tree.map(lambda x: x * scale, state.params)), metrics

        return diverging

    return make


def test_skipped_steps_are_part_of_the_position(tmp_path):
    """Skips before and after a kill give the counts, means and bits of a run without a kill."""
    feed = features_feed(poisoned=(3, 6, 8))
    cut = killing(feed, 6, tmp_path / "cut", kept=(5,))
    with pytest.warns(InputWarning, match="is skipped"):
        start(tmp_path / "whole", feed, skip_non_finite=True)
    with pytest.warns(InputWarning, match="step [36] is skipped"), pytest.raises(Killed):
        start(tmp_path / "cut", cut, skip_non_finite=True, checkpoint_steps=5)
    with pytest.warns(InputWarning, match="step [68] is skipped"):
        row = start(tmp_path / "cut", feed, skip_non_finite=True)
    assert row["skipped_steps"] == 3
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert [row["skipped_steps"] for row in logged(tmp_path / "cut")] == [3, 3]


def test_too_many_steps_left_out_in_a_row_end_the_run(tmp_path):
    feed = features_feed(poisoned=range(5, 99))
    with (
        pytest.warns(InputWarning, match="is skipped"),
        pytest.raises(InputError, match="10 steps in a row were skipped up to step 14"),
    ):
        start(tmp_path, feed, skip_non_finite=True)


def test_impossible_options_are_refused():
    for options, sentence in [
        ({"checkpoint_steps": -1}, "checkpoint steps is -1; expected zero or more"),
        ({"checkpoint_minutes": math.nan}, "checkpoint minutes is nan; expected zero or more"),
        ({"keep": 0}, "keep is 0; expected at least 1 checkpoint"),
    ]:
        with pytest.raises(InputError, match=sentence):
            RunOptions(**options).check()


def test_checkpoints_by_the_clock(tmp_path):
    start(tmp_path, features_feed(), checkpoint_minutes=1e-9, keep=30)
    steps = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert steps == set(range(1, 21))


# Pictures that cannot be read


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of two classes, each with seven training and five test pictures of noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8))
                image.save(tmp_path / split / name / f"{i}.jpg", quality=90)
    return tmp_path


def same(batch, other):
    return all(np.array_equal(batch[key], other[key]) for key in batch)


@pytest.mark.parametrize("crop", ["random", "random_resized"])
def test_unreadable_pictures_are_named_and_replaced_wherever_a_run_begins(pictures, crop):
    """Some pictures have no header, and one has only the upper half of its lines."""
    preprocessing = dataclasses.replace(PHOTOGRAPHS, crop=crop)
    source = data.open_source(f"folder:{pictures}")
    whole = list(itertools.islice(train_batches(source, 4, preprocessing), 14))
    for name in ("a/5", "a/6", "b/6"):
        (pictures / "train" / f"{name}.jpg").write_bytes(b"no picture")
    half = pictures / "train" / "b" / "2.jpg"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])

    recorded = []
    bad = data.BadImages(4, record=recorded.append)
    with pytest.warns(InputWarning, match=r"is not a (complete )?picture .*; skipped") as notes:
        stream = list(itertools.islice(train_batches(source, 4, preprocessing, bad=bad), 14))
    expected = {str(pictures / "train" / f"{name}.jpg") for name in ("a/5", "a/6", "b/6", "b/2")}
    assert set(bad.paths) == set(recorded) == expected
    assert len(notes) == 4
    for step in range(14):
        bad = data.BadImages(4, expected)  # known: no warnings
        kept = 10**7 * (step % 2)  # pictures kept in memory, or decoded again
        begun = train_batches(
            source, 4, preprocessing, start_step=step, bad=bad, decoded=data.Decoded(kept)
        )
        assert all(map(same, itertools.islice(begun, 2), stream[step:]))

    # Positions do not move: every readable picture is unchanged and at its old position.
    equal = [
        np.array_equal(ours, theirs)
        for batch, other in zip(stream, whole, strict=True)
        for ours, theirs in zip(batch["image"], other["image"], strict=True)
    ]
    assert 56 - 4 * 4 <= sum(equal) <= 56 - 3 * 4  # four passes over fourteen pictures
    # b/0 replaces a/5 and a/6, which adds four pictures of class b; a/0 replaces b/6.
    count = np.bincount(np.concatenate([batch["label"] for batch in stream]))
    assert count.tolist() == [28 - 2 * 4 + 4, 28 + 2 * 4 - 4]


def test_damage_is_found_at_any_window(pictures):
    """A JPEG with an invalid Huffman table in its middle is bad, though most windows end before."""
    for path in sorted((pictures / "train").rglob("*.jpg"))[1:]:
        encoded = path.read_bytes()
        middle = len(encoded) // 2
        path.write_bytes(encoded[:middle] + b"\xff\xc4" * 20 + encoded[middle + 40 :])
    source = data.open_source(f"folder:{pictures}")
    preprocessing = dataclasses.replace(PHOTOGRAPHS, crop="random_resized")
    bad = data.BadImages(13)
    with pytest.warns(InputWarning, match="is not a complete picture .*; skipped"):
        stream = list(itertools.islice(train_batches(source, 4, preprocessing, bad=bad), 30))
    assert len(bad.paths) == 13
    assert len({image.tobytes() for batch in stream for image in batch["image"]}) > 100


def test_unreadable_pictures_count_nowhere_in_evaluation(pictures):
    source = data.open_source(f"folder:{pictures}")
    whole = list(eval_batches(source, 4, PHOTOGRAPHS))
    for name in ("a/1", "b/4"):
        (pictures / "val" / f"{name}.jpg").write_bytes(b"")
    bad = data.BadImages(2)
    with pytest.warns(InputWarning):
        batches = list(eval_batches(source, 4, PHOTOGRAPHS, bad=bad))
    masks = [batch["mask"].tolist() for batch in batches]
    assert masks == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    for batch, other in zip(batches, whole, strict=True):
        keep = batch["mask"] == 1
        assert same({k: v[keep] for k, v in batch.items()}, {k: v[keep] for k, v in other.items()})
    assert same(batches[1], list(eval_batches(source, 4, PHOTOGRAPHS, bad=bad))[1])


@pytest.mark.parametrize("maximum", [0, 1])
def test_more_unreadable_pictures_than_allowed_end_the_run(maximum, pictures):
    source = data.open_source(f"folder:{pictures}")
    for name in ("a/1", "b/4"):
        (pictures / "val" / f"{name}.jpg").write_bytes(b"")
    bad = data.BadImages(maximum)
    others = ", after 1 others" if maximum else ""
    reason = "is not a picture in a format that Pillow reads"
    batches = eval_batches(source, 10, PHOTOGRAPHS, bad=bad)
    if maximum:
        with (
            pytest.warns(InputWarning, match="a/1.jpg is not"),
            pytest.raises(InputError, match=rf"val/b/4.jpg {reason}{others}; rem"),
        ):
            list(batches)
    else:
        with pytest.raises(InputError, match=rf"a/1.jpg {reason}; remove or replace it"):
            list(batches)


def test_a_decompression_bomb_is_an_unreadable_picture(pictures):
    """Pillow refuses the header of 900 megapixels of one colour in 900 KB."""
    rows = zlib.compress(bytes(30_000 // 8 * 100), 9)
    header = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])

    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    bomb = pictures / "val" / "a" / "9.png"
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    source = data.open_source(f"folder:{pictures}")
    with pytest.raises(InputError, match=r"a/9.png is too large a picture; scale it"):
        list(eval_batches(source, 4, PHOTOGRAPHS))


# The workdir


def test_a_second_run_in_the_same_workdir_is_refused_until_the_first_is_gone(tmp_path):
    hold = (
        "import pathlib, sys, time; from flaxnets.runs.workdir import Workdir; workdir = "
        "Workdir(pathlib.Path(sys.argv[1]), {}); print('held', flush=True); time.sleep(99)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert output(other).readline() == "held\n"
        before = contents(tmp_path)
        with pytest.raises(InputError, match=r"another process is training in .*; wait for"):
            Workdir(tmp_path, {"epochs": 9})
        assert contents(tmp_path) == before
        other.send_signal(signal.SIGKILL)
    with (
        Workdir(tmp_path, {}),
        pytest.raises(InputError, match="another process is training"),
    ):
        Workdir(tmp_path, {})
    with Workdir(tmp_path, {}):
        pass


def test_another_number_of_classes_is_refused_in_few_words(tmp_path):
    before = [f"class {i}" for i in range(1000)]
    with Workdir(tmp_path, {"class_names": before}):
        pass
    with pytest.raises(InputError, match=r"'class 0' ... 'class 999' \(1000 in all\), not \['a'\]"):
        Workdir(tmp_path, {"class_names": ["a"]})


@pytest.mark.parametrize(
    ("key", "written", "spellings", "other"),
    [
        (
            "dataset",
            "folder:pics/",  # as runs recorded it
            (
                "folder:pics",
                "folder:./pics",
                "folder:a/../pics/",
                "folder:~/pics",
                "folder:{}/pics",
            ),
            "folder:pics2",
        ),
        ("dataset", "npz:{}/a.npz", ("npz:a.npz", "npz:~/a.npz"), "folder:a.npz"),
        ("dataset", "cifar10", ("cifar10",), "cifar100"),
        ("init_from", "a.pth", ("./a.pth", "~/a.pth", "{}/a.pth"), "IMAGENET1K_V1"),
    ],
)
def test_a_path_is_the_same_however_it_is_spelled(
    key, written, spellings, other, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelling in (written, *spellings):
        with Workdir(tmp_path / "run", {key: spelling.format(tmp_path)}):
            pass
    with pytest.raises(InputError, match=f"holds a run with .*, not '{other}'; choose another"):
        Workdir(tmp_path / "run", {key: other})


def test_runs_of_a_folder_have_one_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ("pics", "pics/", "./pics", "~/pics", str(tmp_path / "pics"))
    workdirs = {str(default_workdir("mlp", f"folder:{path}")) for path in spellings}
    assert workdirs == {"runs/mlp-folder-pics"}
    assert str(default_workdir("mlp", "cifar10")) == "runs/mlp-cifar10"
    assert str(default_workdir("mlp", "folder:/data/pics")) == "runs/mlp-folder--data-pics"
    before = tmp_path / "runs/mlp-folder-.-pics"  # an old run, whose name has the "."
    before.mkdir(parents=True)
    assert default_workdir("mlp", "folder:./pics").absolute() == before
    (tmp_path / "runs/mlp-folder-pics").mkdir()
    assert str(default_workdir("mlp", "folder:./pics")) == "runs/mlp-folder-pics"


def test_a_data_set_is_found_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    part = {"x": np.zeros((3, 8, 8), np.uint8), "y": np.arange(3)}
    arrays = {f"{name}_{split}": part[name] for name in part for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays)
    assert data.open_source("npz:~/mine.npz").sizes == {"train": 3, "test": 3}
    with pytest.raises(InputError, match=f"no directory {tmp_path}/mine; a folder data set needs"):
        data.open_source("folder:~/mine")


def test_another_number_of_examples_is_said_once(tmp_path):
    def begin(**examples):
        with Workdir(tmp_path, {"arch": "mlp", "examples": examples}):
            pass

    with Workdir(tmp_path, {"arch": "mlp"}):  # recorded no number
        pass
    begin(train=32, test=16)
    with pytest.warns(InputWarning) as notes:
        begin(train=42, test=16)
    begin(train=42, test=16)
    with pytest.warns(InputWarning) as more:
        begin(train=40, test=10)
    assert [str(note.message) for note in (*notes, *more)] == [
        "the data set has changed since this run was started: 32 training examples before, 42 now",
        "the data set has changed since this run was started: 42 training examples before, 40 now; "
        "16 test examples before, 10 now",
    ]


def test_a_finished_run_asked_for_fewer_epochs_stays_as_it_is(tmp_path, train_here, capsys):
    arguments = ["--arch", "softmax_regression", "--workdir", tmp_path]
    train_here(*arguments, "--epochs", 3)
    capsys.readouterr()
    before = contents(tmp_path)
    for epochs, said in [
        (2, f": the run has 3 epochs already, and 2 were asked for; see {tmp_path}\n"),
        (3, f" of 355 test examples after 3 epochs; see {tmp_path}\n"),
    ]:
        train_here(*arguments, "--epochs", epochs)
        again = capsys.readouterr()
        assert again.err == ""
        assert again.out.startswith("softmax_regression on digits: ")
        assert again.out.endswith(said)
        assert again.out.count("\n") == 1
        assert contents(tmp_path) == before
    train_here(*arguments, "--epochs", 4)
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 4


def test_a_workdir_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot write to /proc/run"):
        Workdir("/proc/run" / tmp_path.relative_to("/"), {})
    (tmp_path / "config.json.new").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        Workdir(tmp_path, {})


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, train_here, capsys):
    """The second run cannot write a file of its workdir; the third continues the first."""
    arguments = ["--arch", "softmax_regression", "--workdir", tmp_path]
    train_here(*arguments, "--epochs", 1)
    full = tmp_path / "metrics.jsonl.new"
    full.symlink_to("/dev/full")
    before = contents(tmp_path / "checkpoints"), logged(tmp_path)
    refused = script("experiments/train.py", *arguments, "--epochs", 2)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: the disk is full; what was saved before is intact, so free some space and run the "
        "same command again\n"
    )
    assert (contents(tmp_path / "checkpoints"), logged(tmp_path)) == before
    full.unlink()
    capsys.readouterr()
    train_here(*arguments, "--epochs", 2)
    assert capsys.readouterr().out.startswith("epoch 2/2")


# Files that no run wrote


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "config.json is damaged: it is not JSON"),
        (b"\xff\xfe", "config.json is damaged: it is not JSON"),
        (b"[" * 100_000, "config.json is damaged: it is not JSON"),
        (b"[]", "config.json is not that of a training run"),
        (b'{"arch": "lenet5"}', "config.json is not that of a training run"),
        (b" " * (2**24 + 1), "config.json is larger than 16 MiB"),
    ],
)
def test_a_config_that_no_run_wrote_is_one_sentence(content, sentence, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load_run(tmp_path)


def test_metrics_damaged_in_the_middle_are_one_sentence(tmp_path):
    with Workdir(tmp_path, {}) as workdir:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n{"ste')
        with pytest.raises(InputError, match=r"metrics.jsonl is damaged: line 2 is not JSON"):
            workdir.rows()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste')
        assert workdir.rows() == [{"step": 1}]
