"""The parts that tools/gpu_check.py measures on a GPU.

Each part runs in a process of its own. It takes the name of a network, or the file of CIFAR-10, and
whether to measure a tiny version on a CPU; it yields rows, which are figures by name.
"""

from collections.abc import Callable, Iterator

from benchmarking.common import Row
from benchmarking.gpu_data import cifar, feed
from benchmarking.gpu_depthwise import depthwise
from benchmarking.gpu_exactness import logits, step
from benchmarking.gpu_speed import profile, speeds, variants

PARTS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "logits": logits,
    "step": step,
    "speed": speeds,
    "variants": variants,
    "profile": profile,
    "depthwise": depthwise,
    "cifar": cifar,
    "feed": feed,
}
