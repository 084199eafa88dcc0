"""Count the bytes that training and evaluation steps read and write on an H200, without one.

XLA compiles the steps for a description of the GPU, and the program says what each operation reads
and writes. It needs jax's CUDA plugin (`pip install "jax[cuda12]"`), but no GPU and no driver. On a
real GPU, XLA also tries out kernels before it chooses among them.
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

# NVIDIA's numbers of the H200: bytes and multiply-adds per second; XLA's GpuTargetConfigProto.
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
    """Return the traffic of a training step and an evaluation step on an H200.

    Each has the gigabytes that its operations read and write, the seconds that the memory needs for
    them, the seconds that matrix products need for the multiply-adds, and the operations' shares.
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
        figures = {
            "gigabytes_moved": total / 1e9,
            "seconds_of_memory": total / BANDWIDTH,
            "seconds_of_products": products * (3 if is_training else 1),
            "temporary_gigabytes": compiled.memory_analysis().temp_size_in_bytes / 1e9,
            "operations": {operation: value / total for operation, value in moved.most_common()},
        }
        row |= {f"{name}_{key}": value for key, value in figures.items()}
    return row


def described_gpu() -> list[Any]:
    """Return a device for which programs can only be compiled.

    Raises InputError without jax's CUDA plugin.
    """
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there is no driver to check
    jax.config.update("jax_platforms", "cpu,cuda")
    try:
        described = topologies.get_topology_desc(
            "H200", "cuda", topology="1x1x1", target_config=H200
        )
    except NotImplementedError as error:
        raise InputError(
            '--mode traffic needs jax\'s CUDA plugin, but no GPU; run pip install "jax[cuda12]"'
        ) from error
    return list(described.devices)


# --------------------------------------------------------------------------- the program's text

ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{\n((?:  .*\n)*)\}", re.MULTILINE)
INSTRUCTION = re.compile(
    r"^  (?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", re.MULTILINE
)
SCRATCH = re.compile(r", [su]8\[\d+\][^,]*\)$")  # the last result of a call of cuBLAS or cuDNN
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a compiled program."""

    name: str
    shape: str  # "f32[8,16]{1,0}", or several in parentheses
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    def attribute(self, pattern: str) -> str:
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""


Computation = dict[str, Instruction]


def traffic(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield the name, kind and bytes of each operation of a compiled program.

    The kind is that of --mode profile. The bytes are those that it reads and writes; of an array
    that it slices, only those of the slices.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    for is_entry, name, body in COMPUTATION.findall(text):
        instructions = [Instruction(*parts) for parts in INSTRUCTION.findall(body)]
        computations[name] = {instruction.name: instruction for instruction in instructions}
        entry = name if is_entry else entry
    program = computations[entry]
    for operation in program.values():
        if operation.opcode in FREE:
            continue
        fused = computations.get(operation.attribute(r"calls=%([\w.-]+)"), {})
        inside = {p.arguments: p.name for p in fused.values() if p.opcode == "parameter"}
        shares = shares_read(fused)
        is_call = operation.opcode == "custom-call"
        size = nbytes(SCRATCH.sub("", operation.shape) if is_call else operation.shape)
        read: dict[str, float] = {}  # each array once, however often it is an operand
        for index, operand in enumerate(operation.operands):
            share = shares.get(inside.get(str(index), ""), 1.0)
            read[operand] = max(share, read.get(operand, 0.0))
        size += sum(round(share * nbytes(program[name].shape)) for name, share in read.items())
        path = operation.attribute(r'op_name="([^"]*)"') or "unnamed"
        yield operation.name, kind(path), size


def shares_read(fused: Computation) -> dict[str, float]:
    """Return the share of its elements that each instruction of a fused computation has to give.

    Of what is sliced in the end, in whatever operations, only the slice is read.
    """
    shares = dict.fromkeys(fused, 0.0)
    for name, instruction in reversed(fused.items()):  # users come after what they use
        if not shares[name]:  # the result
            shares[name] = 1.0
        for operand in set(instruction.operands) & fused.keys():
            given, read = elements(instruction.shape), elements(fused[operand].shape)
            share = 1.0
            if instruction.opcode in ("slice", "dynamic-slice"):
                share = shares[name] * given / read
            elif given == read and instruction.opcode != "tuple":
                share = shares[name]
            shares[operand] = min(shares[operand] + share, 1.0)
    return shares


def nbytes(shape: str) -> int:
    """Return the bytes of the arrays in a shape."""
    return sum(count(sizes) * int(bits or 8) // 8 for bits, sizes in ARRAY.findall(shape))


def elements(shape: str) -> int:
    """Return the elements of the arrays in a shape."""
    return sum(count(sizes) for _, sizes in ARRAY.findall(shape))


def count(dimensions: str) -> int:
    return math.prod(int(n) for n in dimensions.split(",") if n)
