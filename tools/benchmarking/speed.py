"""Measure the seconds of steps, ours and others' in turns, and of compilation."""

import concurrent.futures
import dataclasses
import functools
import math
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.common import (
    Contender,
    Options,
    Row,
    alternate,
    installed,
    peak_gigabytes,
    spread,
    timed,
)
from flaxnets import create_model
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.platform import plain, platform
from flaxnets.recipes import recipe_for
from flaxnets.summary import summarize, totals
from flaxnets.terminal import quiet, reuse_memory
from flaxnets.training.on_device import normalize
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_train_step

ROOT = pathlib.Path(__file__).parents[2]
MULTIPLY_ADDS = 12e9  # forward, for a batch of --all


def multiply_adds(arch: str, input_shape: tuple[int, int, int] | None = None) -> int:
    """Return the multiply-adds of one image, forward."""
    model = create_model(arch)
    return totals(summarize(model, input_shape or model.input_shape))["multiply_adds"]


def suitable_batch_size(arch: str) -> int:
    """Return the batch size of --all for a network: a power of two from 4 to 64."""
    images = MULTIPLY_ADDS / multiply_adds(arch)
    return 2 ** min(max(round(math.log2(images)), 2), 6)


class Ours:
    """A network of the library in training and inference, on random images in memory."""

    def __init__(self, arch: str, options: Options):
        model = create_model(arch, dtype=jnp.dtype(options.dtype), remat=options.remat)
        *size, channels = model.input_shape
        side = options.image_size or (size[0] if size else 1)
        self.input_shape = (side, side, channels)
        # SGD with momentum and weight decay, as torch's contender has it, for every network.
        recipe = dataclasses.replace(
            recipe_for("resnet18", "small images"), loss=recipe_for(arch, "small images").loss
        )
        optimizer = make_optimizer(recipe, lambda _: jnp.float32(0.01))
        count = options.batch_size or 8
        self.parallel = DataParallel(devices=jax.devices()[: options.devices])
        self.parallel.check_batch_size(count)
        variables = init_variables(model, self.input_shape, recipe, 0)
        self.state = self.parallel.replicate(create_state(variables, optimizer, recipe))
        pixel = (0.5,) * channels, (0.25,) * channels
        self.train_step: Any = self.parallel.map(
            make_train_step(model, optimizer, pixel, recipe), donate_state=True
        )

        def forward(variables, images):
            with folded_norms():
                return model.apply(variables, normalize(images, *pixel))

        self.forward = jax.jit(forward)
        self.images = np.random.default_rng(0).integers(
            0, 256, (count, *self.input_shape), np.uint8
        )
        self.batch = self.parallel.shard({"image": self.images, "label": np.zeros(count, np.int32)})

    def queue_train(self) -> None:
        self.state, _ = self.train_step(self.state, self.batch)

    def train(self) -> None:
        self.queue_train()
        jax.block_until_ready(self.state)

    def infer(self) -> None:
        variables = {"params": self.state.params, **self.state.model_state}
        jax.block_until_ready(self.forward(variables, self.batch["image"]))


def torch_network(arch: str) -> tuple[str, Callable[[], Any]] | None:
    """Return the origin of torch's network and a function that builds it; None without torch.

    It is torchvision's network. Where torchvision has none, it is the network with which the parity
    tests compare ours.
    """
    if not installed("torch", "torchvision"):
        return None
    from torchvision_import import torchvision

    models = torchvision.models
    if arch in models.list_models(module=models):
        return "torchvision", functools.partial(models.get_model, arch, weights=None)
    sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/helpers")]
    from networks import CASES

    return "tests/networks", CASES[arch].reference


def torchs(
    build: Callable[[], Any], images: np.ndarray, options: Options, on_gpu: bool
) -> dict[str, Contender]:
    """Return contenders that do the same work with torch's network, in both memory layouts."""
    import torch

    device = torch.device("cuda" if on_gpu else "cpu")
    half = options.dtype == "bfloat16"
    torch.backends.cudnn.benchmark = True  # choose the fastest convolution, as XLA does

    def contender(memory_format, compiled: bool) -> Contender:
        model = build().to(device)
        model = model.to(memory_format=memory_format).train(options.mode == "train")
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.SGD(
            model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=on_gpu or None
        )
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        labels = torch.zeros(len(images), dtype=torch.long, device=device)

        def work() -> None:
            batch = ((x.float() / 255 - 0.5) / 0.25).to(memory_format=memory_format)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                if options.mode == "infer":
                    with torch.inference_mode():
                        forward(batch)
                    return
                optimizer.zero_grad()
                outputs = forward(batch)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                losses = [torch.nn.functional.cross_entropy(logits, labels) for logits in outputs]
            torch.stack(losses).sum().backward()
            optimizer.step()

        return timed(work, torch.cuda.synchronize if on_gpu else None)

    return {
        f"{'compiled' if compiled else 'eager'} {layout}": contender(memory_format, compiled)
        for compiled in (False, True)[: 1 + ("torch.compile" in options.vs)]
        for layout, memory_format in {
            "channels_last": torch.channels_last,
            "default": torch.contiguous_format,
        }.items()
    }


_torchs: dict[str, Contender] = {}  # filled in torch's process


def _prepare_torchs(
    arch: str, images: np.ndarray, options: Options, on_gpu: bool
) -> tuple[str, list[str]] | None:
    """Prepare torch's contenders, and return the network's origin and their names.

    It is None without torch.
    """
    quiet()
    reuse_memory()
    network = torch_network(arch)
    if network is None:
        return None
    origin, build = network
    _torchs.update(torchs(build, images, options, on_gpu))
    return origin, list(_torchs)


def _run_torchs(name: str) -> float:
    return _torchs[name]()


def _elsewhere(other: concurrent.futures.ProcessPoolExecutor, name: str) -> float:
    return other.submit(_run_torchs, name).result()


def in_float32(arch: str, options: Options) -> Contender:
    """Return a contender that is our network in float32."""
    return timed(getattr(Ours(arch, dataclasses.replace(options, dtype="float32")), options.mode))


def plain_contender(arch: str, options: Options) -> Contender:
    """Return a contender that is our network with XLA's own operations instead of our kernels."""
    run = getattr(Ours(arch, options), options.mode)

    def run_plain() -> None:
        with plain():
            run()

    return timed(run_plain)


def side_of_product() -> int:
    """Return the side of a square matrix whose product keeps the device busy for a while."""
    return 2048 if platform() == "cpu" else 8192


def matrix_product(dtype: str) -> Contender:
    """Return a contender that multiplies square matrices of random numbers.

    With constant numbers a GPU draws less power and is faster.
    """
    side = side_of_product()
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(lambda a: a @ a)
    return timed(lambda: jax.block_until_ready(product(a)))


def measure_speed(arch: str, options: Options) -> Row:
    """Return the seconds of a step, ours and others', and our share of this machine's products."""
    ours = Ours(arch, options)
    run = getattr(ours, options.mode)
    start = time.perf_counter()
    run()  # traces and compiles
    first = time.perf_counter() - start
    run()
    peak = peak_gigabytes()
    contenders = {"ours": timed(run), "ceiling": matrix_product(options.dtype)}
    own = {"plain": plain_contender, "float32": in_float32}
    own = {name: of_own for name, of_own in own.items() if name in options.vs}
    contenders |= {name: of_own(arch, options) for name, of_own in own.items()}
    peer, theirs = None, {}
    # torch has a process of its own, so that neither gets a heap that the other has fragmented.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        if {"torchvision", "torch.compile"} & set(options.vs):
            on_gpu = platform() == "gpu"
            peer = other.submit(_prepare_torchs, arch, ours.images, options, on_gpu).result()
        for name in peer[1] if peer else ():
            theirs[name] = functools.partial(_elsewhere, other, name)
        seconds = alternate(contenders | theirs, options.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    passes = 3 if options.mode == "train" else 1  # the backward pass has two products per layer
    count = len(ours.images)
    rate = 2 * multiply_adds(arch, ours.input_shape) * count * passes / median["ours"]
    row = {
        "batch_size": count,
        "image_size": ours.input_shape[0],
        "devices": len(ours.parallel.devices),
        "first_seconds": first,
        "seconds": median["ours"],
        "spread": spread(seconds["ours"]),
        "images_per_second": count / median["ours"],
        "gigaflops": rate / 1e9,
        "share_of_ceiling": rate * median["ceiling"] / (2 * side_of_product() ** 3),
        "peak_gigabytes": peak,
    }
    if peer:
        best = min(theirs, key=lambda name: median[name])
        row |= {
            "torch_seconds": median[best],
            "torch_spread": spread(seconds[best]),
            "torch_network": peer[0],
            "torch_was": best,
            "ratio": median["ours"] / median[best],
        }
    return row | {f"ratio_to_{name}": median["ours"] / median[name] for name in own}


def measure_compilation(arch: str, options: Options) -> Row:
    """Return the seconds to trace and to compile a training step, and those of its first run."""
    ours = Ours(arch, options)
    start = time.perf_counter()
    traced = ours.train_step.lower(ours.state, ours.batch)
    middle = time.perf_counter()
    compiled = traced.compile()
    end = time.perf_counter()
    ours.state, metrics = compiled(ours.state, ours.batch)
    if not math.isfinite(float(metrics["loss"])):
        raise FloatingPointError(f"the loss of {arch} is {metrics['loss']}")
    return {
        "trace_seconds": middle - start,
        "compile_seconds": end - middle,
        "step_seconds": time.perf_counter() - end,
        "loss": float(metrics["loss"]),
        "peak_gigabytes": peak_gigabytes(),
    }
