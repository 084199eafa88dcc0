"""Linear models and multilayer perceptrons in torch. A row of features is an image of one pixel."""

import functools
import itertools
from collections import OrderedDict

from torch import nn

from parity import Case


def mlp(
    *sizes: int,
    num_classes: int,
    activation: type[nn.Module] = nn.ReLU,
    batch_norm: bool = False,
) -> nn.Module:
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        norms = [nn.BatchNorm1d(n_out)] if batch_norm else []
        layers += [nn.Linear(n_in, n_out), *norms, activation()]
    classifier = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), classifier=classifier))


def case(parameters: int, *sizes: int, num_classes: int = 10, pixels: int = 8) -> Case:
    reference = functools.partial(mlp, *sizes, num_classes=num_classes)
    return Case(parameters, sizes=(pixels,), train_size=pixels, reference=reference)


CASES = {
    "softmax_regression": case(650, 64),
    "perceptron": case(9_610, 64, 128),
    "mlp": case(42_634, 64, 128, 128, 128),
    "linear_regression": case(11, 10, num_classes=1, pixels=1),
}
HEAD = "classifier.0"
