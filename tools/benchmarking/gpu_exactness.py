"""Measure how exact a network is on a GPU: its logits, and one training step.

The logits are compared with those of torchvision's network in float32 without TF32, the training
step with our own on the CPU. Run as a script, this file makes the step on the CPU.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.common import Row
from flaxnets import create_model, from_torch
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.platform import plain, platform
from flaxnets.recipes import recipe_for
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_train_step

STATISTICS = (0.5,) * 3, (0.25,) * 3  # mean and deviation of pixels


def logits(arch: str, tiny: bool) -> Iterator[Row]:
    """Measure the errors of logits against torch's on the same device.

    In float32 without TF32: the largest error, divided by the largest logit, and the largest change
    by folding the norms. In bfloat16: the standard deviation of our errors and of autocast's,
    divided by that of the logits.
    """
    import torch
    from torchvision_import import torchvision

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if platform() == "gpu" else "cpu"
    torch.manual_seed(0)
    reference = torchvision.models.get_model(arch, weights=None).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean = torch.empty_like(module.weight).uniform_(-0.2, 0.2).detach()
            module.running_var = torch.empty_like(module.weight).uniform_(0.5, 1.5).detach()
        elif isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)  # a vision transformer's head
    side = 64 if tiny and arch not in ("googlenet", "vit_b_16") else 224
    x = np.random.default_rng(0).standard_normal((2 if tiny else 16, side, side, 3), np.float32)
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    reference = reference.to(device)
    nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(device)
    with torch.inference_mode():
        exact = reference(nchw).cpu().numpy()
        with torch.autocast(device, torch.bfloat16):
            half = reference(nchw).float().cpu().numpy()
    model = create_model(arch)
    variables = from_torch(
        state, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    )

    def our_logits(dtype: Any) -> np.ndarray:
        def forward(variables: Any, x: np.ndarray) -> Any:
            with folded_norms():
                return model.clone(dtype=dtype).apply(variables, x)

        compiled = jax.jit(forward, compiler_options=_untuned())
        return np.asarray(compiled(variables, x), np.float32)

    with jax.default_matmul_precision("highest"):
        float32 = our_logits(jnp.float32)
        with plain("folding"):
            unfolded = our_logits(jnp.float32)
    bfloat16 = our_logits(jnp.bfloat16)
    yield {
        "logits_error": _largest(float32, exact),
        "folded_error": _largest(float32, unfolded),
        "bfloat16_error": float((bfloat16 - exact).std() / exact.std()),
        "autocast_error": float((half - exact).std() / exact.std()),
        "bfloat16_correlation": float(np.corrcoef(bfloat16.ravel(), exact.ravel())[0, 1]),
    }


def _untuned() -> dict[str, Any]:
    """Return options for XLA not to try out kernels, which would take longer than the rest."""
    return {"xla_gpu_autotune_level": 0} if platform() == "gpu" else {}


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, divided by the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def step(arch: str, tiny: bool) -> Iterator[Row]:
    """Measure the errors of one training step against the CPU's in float32.

    For parameters and running statistics in float32: the norm of the errors, divided by the norm of
    the values, and by that of the step's update. Then the largest difference between both mappings.
    Last the errors of the updates in bfloat16, with folded norms and without.

    The errors of the update are a few per cent. So are those of two formulations on one CPU,
    because rounding moves values across a ReLU's zero.
    """
    side, count = (32, 4) if tiny else (96, 16)
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "cpu.npz"
        command = [sys.executable, __file__, arch, str(side), str(count), str(file)]
        # As many CPU devices as here: XLA has a thread for each, and splits the sums of matrix
        # products among the threads, which changes their last bits.
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(jax.local_device_count(backend="cpu")),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run(command, check=True, env=environment)
        with np.load(file) as arrays:
            on_cpu = dict(arrays)
    with jax.default_matmul_precision("highest"):
        mapped = {name: one_step(arch, side, count, name) for name in ("shard_map", "pmap")}
    narrow = {"bfloat16": one_step(arch, side, count, "shard_map", jnp.bfloat16)}
    with plain("folding"):
        narrow["unfolded_bfloat16"] = one_step(arch, side, count, "shard_map", jnp.bfloat16)
    row: Row = {}
    here = mapped["shard_map"]
    for part in ("params", "statistics"):
        names = [name for name in on_cpu if name.startswith(part)]
        update = _norm([on_cpu[name] - on_cpu["before " + name] for name in names])

        def error(step: dict[str, np.ndarray], names: list[str] = names) -> float:
            return _norm([step[name] - on_cpu[name] for name in names])

        row[f"{part}_error"] = error(here) / _norm([on_cpu[name] for name in names])
        for name, result in {"": here, **narrow}.items():
            row[f"{name}_{part}_error_of_the_update".lstrip("_")] = error(result) / update
    row["mappings_differ"] = float(
        max(np.abs(here[name] - mapped["pmap"][name]).max() for name in here)
    )
    yield row


def _norm(arrays: list[np.ndarray]) -> float:
    """Return the Euclidean norm of all values together."""
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


def one_step(
    arch: str, side: int, count: int, mapping: Any, dtype: Any = jnp.float32
) -> dict[str, np.ndarray]:
    """Return the parameters and running statistics before and after one training step.

    Args:
        arch: name of a network.
        side: pixels of each side of the images.
        count: number of images.
        mapping: as for `DataParallel`.
        dtype: type of the activations.
    """
    fields = {"dropout_rate": 0.0} if hasattr(create_model(arch), "dropout_rate") else {}
    model = create_model(arch, dtype=dtype, **fields)
    recipe = recipe_for(arch, "small images")
    optimizer = make_optimizer(recipe, lambda _: jnp.float32(0.01))
    # The CPU draws the same bits everywhere.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        variables = jax.device_get(init_variables(model, (side, side, 3), recipe, 0))
    parallel = DataParallel(mapping, jax.devices()[:1])
    state = create_state(variables, optimizer, recipe)
    if mapping == "shard_map":
        state = parallel.replicate(state)
    function = make_train_step(model, optimizer, STATISTICS, recipe)
    images, labels = _pictures(count, side)
    state, _ = parallel.map(function)(state, parallel.shard({"image": images, "label": labels}))
    arrays = {}
    for prefix, tree in (("before ", variables), ("", state.variables)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            part = "params" if path[0].key == "params" else "statistics"
            arrays[f"{prefix}{part} {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return arrays


def _pictures(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images (count, side, side, 3), uint8, and labels (count,), int32."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, random.integers(0, 10, count).astype(np.int32)


if __name__ == "__main__":  # the step on the CPU, for `step`
    arch, side, count, file = sys.argv[1:]
    arrays: Any = one_step(arch, int(side), int(count), "shard_map")
    np.savez(file, **arrays)
