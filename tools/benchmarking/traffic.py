"""What training and evaluation steps move through the memory of a GPU that need not be here: XLA
compiles them for a described one, and a program says what each operation reads and writes.

It needs jax's CUDA plugin (`pip install "jax[cuda12]"`), no GPU and no driver. Kernels are not
tried out, as XLA does on a GPU before it chooses among them.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarking.common import Options, Row
from benchmarking.profiling import kind
from benchmarking.speed import multiply_adds
from flaxnets import create_model
from flaxnets.errors import InputError
from flaxnets.kernels.platform import compiling_for
from flaxnets.recipes import recipe_for
from flaxnets.training.parallel import AXIS, DataParallel
from flaxnets.training.program import Feed, make_program

# NVIDIA's numbers of the H200: bytes and multiply-adds a second, and XLA's GpuTargetConfigProto.
BANDWIDTH = 4.8e12
PRODUCTS = {"bfloat16": 989e12 / 2, "float32": 494e12 / 2}  # as TF32
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
"""


def measure_traffic(arch: str, options: Options) -> Row:
    """Of a training step and of an evaluation step on an H200: gigabytes that the operations read
    and write, the seconds that its memory needs for them and its matrix products for the
    multiply-adds, and the shares of the operations.
    """
    model = create_model(arch, dtype=jnp.dtype(options.dtype), remat=options.remat)
    *size, channels = model.input_shape
    side = options.image_size or (size[0] if size else 1)
    shape, batch_size = (side, side, channels), options.batch_size or 8
    feed = Feed(
        train=lambda _: iter(()), test=lambda: iter(()), train_size=batch_size, input_shape=shape,
        statistics=((0.5,) * channels, (0.25,) * channels),
    )  # fmt: skip
    recipe = dataclasses.replace(recipe_for(arch, "small images"), batch_size=batch_size)
    parallel = DataParallel(devices=described_gpu())
    program = make_program(model, recipe, feed, parallel)
    split = NamedSharding(parallel.mesh, PartitionSpec(AXIS))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *shape), np.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=split),
        "mask": jax.ShapeDtypeStruct((batch_size,), np.float32, sharding=split),
    }
    state = program.state_shapes()
    with compiling_for("gpu"):
        steps = {
            "training": program.train_step.lower(state, batch),
            "evaluation": program.eval_step.lower(state.variables, batch),
        }
    row: Row = {"compiled_for": "NVIDIA H200", "batch_size": batch_size, "image_size": side}
    products = multiply_adds(arch, shape) * batch_size / PRODUCTS[options.dtype]
    for name, step in steps.items():
        is_training = name == "training"
        compiled = step.compile(compiler_options={"xla_gpu_autotune_level": 0})
        moved: collections.Counter[str] = collections.Counter()
        for _, operation, size_in_bytes in traffic(compiled.as_text()):
            moved[operation if is_training else operation.split(",")[0]] += size_in_bytes
        total = moved.total()
        found = {
            "gigabytes_moved": total / 1e9,
            "seconds_of_memory": total / BANDWIDTH,
            "seconds_of_products": products * (3 if is_training else 1),
            "temporary_gigabytes": compiled.memory_analysis().temp_size_in_bytes / 1e9,
            "operations": {operation: value / total for operation, value in moved.most_common()},
        }
        row |= {f"{name}_{key}": value for key, value in found.items()}
    return row


def described_gpu() -> list[Any]:
    """Return a device for which programs can only be compiled.

    Raises InputError without jax's CUDA plugin.
    """
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of a driver that is not here
    jax.config.update("jax_platforms", "cpu,cuda")
    try:
        described = topologies.get_topology_desc(
            "H200", "cuda", topology="1x1x1", target_config=H200
        )
    except NotImplementedError as error:
        raise InputError('--mode traffic needs pip install "jax[cuda12]", but no GPU') from error
    return list(described.devices)


# --------------------------------------------------------------------------- the program's text

ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{\n((?:  .*\n)*)\}", re.MULTILINE)
INSTRUCTION = re.compile(
    r"^  (?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", re.MULTILINE
)
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # "f32[8,16]{1,0}", or several in parentheses
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else ""


Computation = dict[str, Instruction]


def traffic(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield each operation of a compiled program: its name, what --mode profile calls it, and the
    bytes that it reads and writes. Where it takes only slices of an array, these are the slices'.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    for is_entry, name, body in COMPUTATION.findall(text):
        found = [Instruction(*each) for each in INSTRUCTION.findall(body)]
        computations[name] = {each.name: each for each in found}
        entry = name if is_entry else entry
    program = computations[entry]
    for each in program.values():
        if each.opcode in FREE:
            continue
        fused = computations.get(each.attribute(r"calls=%([\w.-]+)"), {})
        inside = {p.arguments: p.name for p in fused.values() if p.opcode == "parameter"}
        size = nbytes(each.shape)
        for index, operand in enumerate(each.operands):
            name = inside.get(str(index))
            share = share_read(fused, name) if name else 1
            size += round(share * nbytes(program[operand].shape))
        yield each.name, kind(each.attribute(r'op_name="([^"]*)"') or "unnamed"), size


def share_read(fused: Computation, name: str) -> float:
    """Of the elements of `name`."""
    total = 0.0
    for user in fused.values():
        if name not in user.operands:
            continue
        if user.opcode in ("slice", "dynamic-slice"):
            total += elements(user.shape) / elements(fused[name].shape)
        elif user.opcode in ("convert", "bitcast"):
            total += share_read(fused, user.name)
        else:
            return 1
    return min(total, 1)


def nbytes(shape: str) -> int:
    return sum(count(of) * int(bits or 8) // 8 for bits, of in ARRAY.findall(shape))


def elements(shape: str) -> int:
    return sum(count(of) for _, of in ARRAY.findall(shape))


def count(dimensions: str) -> int:
    return math.prod(int(n) for n in dimensions.split(",") if n)
