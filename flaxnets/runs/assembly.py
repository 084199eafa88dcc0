"""Assemble a run from its options and its data set, and check it before anything is written."""

import dataclasses
import functools
import pathlib
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from flaxnets.data.bad_images import BadImages
from flaxnets.data.decoded import Decoded
from flaxnets.data.plan import Plan, evaluation_plan, training_plan
from flaxnets.data.source import Source
from flaxnets.errors import InputError, InputWarning
from flaxnets.models import create_model
from flaxnets.runs.feed import feed_from_source, training_examples
from flaxnets.runs.initial import initial_weights
from flaxnets.runs.options import MAY_DIFFER, Options
from flaxnets.runs.same_run import default_workdir, stored_value
from flaxnets.runs.workdir import Workdir, shared_workdir
from flaxnets.training.batch_norms import check_batch_norms
from flaxnets.training.dtype import dtype_of_run
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Program, make_program


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start: `loop.fit(run.program, run.open_workdir())`."""

    options: Options
    source: Source
    model: nn.Module
    program: Program
    bad_images: BadImages
    notes: tuple[str, ...]  # what is missing in the weights to start from

    @property
    def title(self) -> str:
        """The network and the data set, for a person."""
        return f"{self.options.arch} on {self.options.dataset}"

    @property
    def path(self) -> pathlib.Path:
        """The path of the workdir."""
        return _workdir(self.options)

    @property
    def train_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of training images."""
        preprocessing = self.options.values.preprocessing
        size = preprocessing.train_size or preprocessing.image_size
        return (size, size, self.source.channels)

    @property
    def training_plan(self) -> Plan:
        """The operations on training images."""
        return training_plan(self.options.values.preprocessing, self.source)

    @property
    def evaluation_plan(self) -> Plan:
        """The operations on test images."""
        source = self.source
        return evaluation_plan(self.options.values.preprocessing, source.kind, source.channels)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json.

        It records the values that must not change when the run is continued, the data, and how
        pictures are read.
        """
        options, feed = self.options, self.program.feed
        return {
            **dataclasses.asdict(options) | dict.fromkeys(MAY_DIFFER),
            **dataclasses.asdict(options.values),
            "ema": options.ema or None,  # runs from before this option lack it
            "input_shape": feed.input_shape,
            "class_names": feed.class_names,
            "statistics": feed.statistics,
            "kind": self.source.kind,
            "plan": {
                "training": self.training_plan.to_json(),
                "evaluation": self.evaluation_plan.to_json(),
            },
            "examples": dict(self.source.sizes),
        }

    def open_workdir(self) -> Workdir:
        """Open the workdir, which from now on records unreadable pictures.

        All processes of the run call this; process 0 writes. Raises InputError as `Workdir` and
        `Follower` do.
        """
        workdir = shared_workdir(self.path, self.config)
        self.bad_images.go_on(workdir.bad_images, workdir.add_bad_image)
        return workdir


def assemble(options: Options, source: Source, parallel: DataParallel) -> Run:
    """Return the run that `options` describe. Call this after `processes.join`.

    Nothing is written. Warns if an epoch is many passes over the data.

    Raises InputError if images, batch size, patterns or weights do not fit the network.
    """
    recipe = options.values
    if recipe.loss == "cross_entropy" and not source.class_names:
        raise InputError(
            f"the labels of {options.dataset} are numbers, not classes, and the loss is "
            f"cross_entropy; expected the loss squared_error"
        )
    before = stored_value(_workdir(options), "dtype")
    options = dataclasses.replace(options, dtype=dtype_of_run(options.dtype, before))
    model = create_model(
        options.arch,
        num_classes=len(source.class_names) or 1,
        dtype=jnp.dtype(options.dtype),
        remat=options.remat,
    )
    size = recipe.preprocessing.image_size
    statistics = recipe.normalization(source.statistics)
    initial = initial_weights(options, model, (size, size, source.channels), statistics)
    bad_images = BadImages(options.max_bad_images)
    feed = feed_from_source(
        source,
        recipe,
        parallel,
        seed=options.seed,
        statistics=initial.statistics,
        shard=(jax.process_index(), jax.process_count()),
        bad=bad_images,
        decoded=Decoded(int(options.decoded_gigabytes * 1e9)),
    )
    program = make_program(
        model,
        recipe,
        feed,
        parallel,
        seed=options.seed,
        initial=initial.variables,
        skip_non_finite=options.on_nan == "skip",
        examples=functools.partial(training_examples, source, recipe.preprocessing),
    )
    run = Run(options, source, model, program, bad_images, initial.notes)
    _check_images(run)
    if jax.process_index() == 0:
        _warn_of_short_epochs(program)
    return run


def _workdir(options: Options) -> pathlib.Path:
    return options.workdir or default_workdir(options.arch, options.dataset)


def _check_images(run: Run) -> None:
    """Raise InputError if the network cannot read the run's images.

    That includes images so small that a batch norm would see a single value.
    """
    program, train_shape = run.program, run.train_shape
    variables = program.state_shapes().variables
    if train_shape != program.feed.input_shape:
        try:
            jax.eval_shape(run.model.apply, variables, jnp.zeros((1, *train_shape)))
        except ScopeParamShapeError as error:
            raise InputError(
                f"train size is {train_shape[0]}, but {run.options.arch} reads images of a single "
                f"size; expected {program.feed.input_shape[0]} or 0"
            ) from error
    devices = len(program.parallel.devices)
    check_batch_norms(run.model, variables, program.recipe, train_shape, devices)


def _warn_of_short_epochs(program: Program) -> None:
    """Warn if the batch is larger than the data set: an epoch has at least one step."""
    batch_size, examples = program.recipe.batch_size, program.feed.train_size
    if batch_size > examples:
        warnings.warn(
            f"a batch of {batch_size} images is larger than the data set, so that each epoch is "
            f"one step and {batch_size / examples:.3g} passes over the {examples} training "
            f"examples; choose a batch size of at most {examples}",
            InputWarning,
            stacklevel=3,
        )
