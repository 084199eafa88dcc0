"""Load the weights that a run starts from."""

import dataclasses
import warnings
from typing import Any

from flaxnets.errors import InputError
from flaxnets.recipes import Statistics
from flaxnets.runs.options import Options
from flaxnets.training.state import PyTree
from flaxnets.weights import PublishedWeights, WeightsWarning, find_weights, load_model


@dataclasses.dataclass(frozen=True)
class Initial:
    """The start of a run."""

    variables: PyTree | None  # None for fresh ones
    statistics: Statistics  # mean and deviation by which images are normalised
    notes: tuple[str, ...] = ()  # sentences on what is missing in the weights


def initial_weights(
    options: Options, model: Any, input_shape: tuple[int, int, int], statistics: Statistics
) -> Initial:
    """Return the variables and statistics that the run starts from.

    With published weights, colour images are normalised by the statistics of those weights.

    Raises InputError for weights that are absent, broken or of another network.
    """
    if options.init_from is None:
        if options.ema:
            raise InputError(
                "the average weights (ema) of a file are asked for, but no file is given; expected "
                "a file of weights in init from"
            )
        return Initial(None, statistics)
    start = find_weights(options.arch, options.init_from)
    if isinstance(start, PublishedWeights) and input_shape[-1] == 3:
        statistics = start.statistics
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", WeightsWarning)
        _, variables, _ = load_model(
            model,
            start,
            input_shape,
            num_classes=model.num_classes,
            in_channels=input_shape[-1],
            ema=options.ema,
            seed=options.seed,
        )
    return Initial(variables, statistics, tuple(str(note.message) for note in notes))
