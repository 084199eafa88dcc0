"""The weights that a run starts from."""

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
    """The variables that a run starts from, None for fresh ones, and the statistics by which its
    images are normalised. `notes` name what the weights lack.
    """

    variables: PyTree | None
    statistics: Statistics
    notes: tuple[str, ...] = ()


def initial_weights(
    options: Options, model: Any, input_shape: tuple[int, int, int], statistics: Statistics
) -> Initial:
    """Return what the run starts from. Published weights have their own statistics for colour
    images.

    Raises InputError for weights that are absent, broken or of another network.
    """
    if options.init_from is None:
        if options.ema:
            raise InputError(
                "the average weights (ema) are those of a file; expected a file in init_from"
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
