"""Files of torch.save are read without torch: the same bits, and nothing but data."""

import argparse
import collections
import datetime
import io
import itertools
import os
import pathlib
import pickle
import random
import re
import resource
import struct
import time
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

from flaxnets import InputError
from flaxnets.weights.files import read_weights
from flaxnets.weights.torch_files import CHAIN, read_torch_file
from flaxnets.weights.torch_objects import Record
from flaxnets.weights.torch_tensors import DTYPES, STORAGES, Storage, checked_tensor

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "chain"])


def saved(value: Any, path: pathlib.Path, zipped: bool = True, **options) -> pathlib.Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return bytes(tensor.untyped_storage())


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare what was read with what `torch.load` gives, number by number and bit by bit."""
    if isinstance(theirs, torch.Tensor):
        array = ours.array()
        assert f"torch.{array.dtype}" == str(theirs.dtype)
        assert array.shape == tuple(theirs.shape)
        assert array.tobytes() == bits(theirs)
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple) and not isinstance(theirs, torch.Size):
        assert type(ours) is type(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert ours == theirs


def numbers(kind: torch.dtype, *shape: int) -> torch.Tensor:
    """Return random bits as numbers of any type."""
    generator = torch.Generator().manual_seed(1)
    count = torch.Size(shape).numel()
    if kind == torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).bool()
    size = torch.empty(0, dtype=kind).element_size()
    data = torch.randint(0, 256, (count * size,), generator=generator, dtype=torch.uint8)
    tensor: Any = torch.empty(0, dtype=kind)
    return tensor.set_(data.untyped_storage(), 0, shape)


# --- The same bits as torch.load ------------------------------------------------------------------


# torch saves its newer number types in the zip format only; NumPy lacks some of them.
OLD = [getattr(torch, name) for name in STORAGES.values()]
NEW = [getattr(torch, name) for name in DTYPES if getattr(torch, name) not in OLD]
LACKING = [torch.float4_e2m1fn_x2]


@pytest.mark.parametrize(
    ("kind", "zipped"),
    [*itertools.product(OLD, (True, False)), *itertools.product(NEW, (True,))],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_type_of_numbers_is_torchs(kind, zipped, tmp_path):
    path = saved({"a": numbers(kind, 5, 3)}, tmp_path / "a.pth", zipped)
    assert_same(read_torch_file(path), torch.load(path, weights_only=True))


def test_types_of_numbers_are_all_but_quantised_ones_and_bits(tmp_path):
    kinds = {kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
    for kind in kinds - {*OLD, *NEW, *LACKING}:
        assert re.fullmatch(r"torch\.(q.*|bits.*|u?int[1-7])", str(kind))
    for kind in LACKING:
        path = saved({"a": numbers(kind, 5, 3)}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=f"'{kind}', numbers of a type that NumPy lacks; save"):
            read_torch_file(path)


@FORMATS
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_views_are_torchs(kind, zipped, tmp_path):
    base = numbers(kind, 6, 4, 5)
    tensors = {
        "whole": base, "transposed": base.transpose(0, 2), "strided": base[1::2, :, ::3],
        "shared": base[2:4], "reversed dimensions": base.permute(2, 1, 0)[1:],
        "expanded": base[:1, :1].expand(3, 7, 5), "scalar": base[1, 2, 3], "empty": base[:, :0],
        "nothing": torch.empty(0, dtype=kind), "no rows": torch.empty(0, 2**40, dtype=kind),
        "channels last": numbers(kind, 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base, requires_grad=False),
    }  # fmt: skip
    path = saved(tensors, tmp_path / "a.pth", zipped)
    ours = read_torch_file(path)
    assert_same(ours, torch.load(path, weights_only=True))
    assert ours["whole"].storage is ours["shared"].storage
    with pytest.raises(ValueError, match="read-only"):
        ours["whole"].array()[:] = 0


@FORMATS
def test_numbers_stay_in_the_file_until_they_are_used(zipped, tmp_path):
    path = saved({name: torch.ones(2**20) for name in "abcd"}, tmp_path / "a.pth", zipped)
    tracemalloc.start()
    arrays = read_weights(path, "abcd")
    assert tracemalloc.get_traced_memory()[1] < 2**18  # 16 MiB are in the file
    assert sum(float(array.astype(np.float32).sum()) for array in arrays.values()) == 2**22
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**22 + 2**18  # a tensor has 4 MiB
    tracemalloc.stop()


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_beside_tensors_are_torchs(protocol, zipped, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    attributed: Any = torch.nn.Parameter(torch.ones(2))
    attributed.note = "kept"
    value = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
        "numbers": [1, 255, 256, 70000, -1, 2**40, -(2**70), 0.5, float("inf"), True, False, None],
        "text": ["", "key", "\u00e9\U0001f600", "x" * 300, "x" * 70000], "bytes": b"\0\xff" * 200,
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 7: {"seven": [[]]},
        "set": {1, 2}, "counts": collections.Counter({30: 1}), "size": torch.Size([2, 3]),
        "attributed": attributed, "parameters": list(model.parameters()),
        "attributed tensor": model.state_dict(),
    }  # fmt: skip
    path = saved(value, tmp_path / "a.pth", zipped, pickle_protocol=protocol)
    # torch's own restricted reader knows protocol 2 alone.
    assert_same(read_torch_file(path), torch.load(path, weights_only=protocol == 2))


class AttributeDict(dict):
    """Stands in for Lightning's class, under whose name it is saved."""


AttributeDict.__module__ = "lightning.fabric.utilities.data"


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_are_inert(protocol, zipped, tmp_path, monkeypatch):
    module: Any = type(os)("data")
    module.AttributeDict = AttributeDict
    for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities", module.__name__):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    monkeypatch.setitem(__import__("sys").modules, AttributeDict.__module__, module)
    arrays = {
        "float": np.arange(12.0).reshape(3, 4), "fortran": np.asfortranarray(np.eye(3, 2)),
        "big": np.arange(3, dtype=">i4"), "text": np.array(["a", "bc"]), "none": np.zeros((0, 2)),
        "bool": np.array([True, False]),
    }  # fmt: skip
    scalars = [np.float64(70.0), np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("best")]
    value = {
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x/y")),
        "path": pathlib.PosixPath("a/b"), "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16, "when": datetime.datetime(2024, 1, 2),
        "settings": AttributeDict(width=3, nested=AttributeDict(depth=2)),
        "lists": collections.defaultdict(list, a=[1]), "numpy dtype": np.dtype("f4"),
        "version": torch.__version__, "range": range(3), "layout": torch.strided,
        "arrays": arrays, "scalars": scalars,
    }  # fmt: skip
    ours = read_torch_file(saved(value, tmp_path / "a", zipped, pickle_protocol=protocol))
    assert ours["args"].name == "argparse.Namespace"
    assert ours["args"].state["lr"] == 0.1
    assert ours["args"].state["path"].arguments == ("/", "x", "y")
    assert ours["path"].name in ("pathlib.PosixPath", "pathlib._local.PosixPath")
    assert (ours["device"].name, ours["device"].arguments) == ("torch.device", ("cuda", 1))
    assert ours["dtype"] == DTYPES["bfloat16"]
    assert isinstance(ours["when"], Record)
    assert ours["settings"] == {"width": 3, "nested": {"depth": 2}}
    assert ours["lists"] == {"a": [1]}
    assert ours["version"].arguments == (str(torch.__version__),)
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours["arrays"][name], array, name)
        assert ours["arrays"][name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert [(type(our), our) for our in ours["scalars"]] == [(type(s), s) for s in scalars]


def test_a_file_of_python_2(tmp_path):
    """Keys are strings of bytes, and storages may be views of others; written by hand here."""

    def string(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    def storage(name: bytes, view: bytes) -> bytes:
        return (
            b"(" + string("storage") + b"ctorch\nFloatStorage\n" + string("7") + string("cpu")
            + b"K\x06" + view + b"tQ"
        )  # fmt: skip

    view = b"(" + string("8") + b"K\x02K\x03t"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(%sK\x01K\x02\x85K\x01\x85tR"
    body = (
        b"\x80\x02ccollections\nOrderedDict\n]]("
        + string("a.weight") + tensor % storage(b"7", view) + b"ea\x85R."
    )  # fmt: skip
    system = pickle.dumps({"little_endian": True}, 2)
    values = np.arange(6, dtype="<f4")
    path = tmp_path / "old.pth"
    path.write_bytes(
        CHAIN + pickle.dumps(1001, 2) + system + body
        + pickle.dumps(["7"], 2) + struct.pack("<q", 6) + values.tobytes()
    )  # fmt: skip
    ours = read_torch_file(path)
    np.testing.assert_array_equal(ours["a.weight"].array(), values[3:5])


# --- Nothing but data -----------------------------------------------------------------------------


class Planted:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@FORMATS
@pytest.mark.parametrize(
    ("planted", "name"),
    [
        (lambda path: Planted(os.system, f"touch {path}"), "posix.system"),
        (lambda path: Planted(exec, f"open({str(path)!r}, 'w')"), "builtins.exec"),
        (lambda path: Planted(eval, f"open({str(path)!r}, 'w')"), "builtins.eval"),
        (lambda path: Planted(getattr, "a", "upper"), "builtins.getattr"),
        (lambda path: Planted(open, str(path), "w"), "io.open"),
        (lambda path: Planted(__import__, "os"), "builtins.__import__"),
        (lambda path: os.system, "posix.system"),
        (lambda path: torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (lambda path: Planted(list, (1, 2)), "builtins.list"),
    ],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_not_plain_data_is_refused_by_name(planted, name, zipped, protocol, tmp_path):
    value = {"weight": torch.ones(3), "other": planted(tmp_path / "planted")}
    path = saved(value, tmp_path / "a.pth", zipped, pickle_protocol=protocol)
    with pytest.raises(InputError) as raised:
        read_torch_file(path)
    assert str(raised.value) == (
        f"{path} holds {name!r}, which is not plain data; save model.state_dict() instead"
    )
    assert not (tmp_path / "planted").exists()


def pickled(path: pathlib.Path, code: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    return path


@pytest.mark.parametrize(
    "code",
    [
        b"r\xff\xff\xff\xff.",  # a memo with four billion places
        b"\x80\x02\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02]q\x01(" + b"K\x01K\x02\x86" * 20_000 + b"e0"
        + b"ccollections\nOrderedDict\nh\x01\x85R0" * 20_000 + b"N.",  # copies of one list
        b"\x80\x02N" + b"\x85" * 100_000,  # no end
        b"(" * 100_000,
        b"\x80\x02}" + b"q\x01h\x01N" * 50_000 + b"u.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x01O\x85RC\x01a\x86R.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"N" * 10 + b"Q.", b"", b".", b"e.", b"0.", b"R.", b"b.", b"cos\n", b"\x93.", b"h\x00.",
    ],
    ids=range(19),
)  # fmt: skip
def test_hostile_pickles_end_at_once(code, tmp_path):
    start = time.process_time()
    with pytest.raises(InputError):
        read_torch_file(pickled(tmp_path / "a.pth", code))
    assert time.process_time() - start < 5


def test_members_are_where_and_what_they_say(tmp_path):
    path = saved({"a": torch.arange(1000.0)}, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}

    def rewritten(change: dict[str, bytes], **options) -> pathlib.Path:
        with zipfile.ZipFile(tmp_path / "b.pth", "w", **options) as archive:
            for name, data in (members | change).items():
                archive.writestr(name, data)
        return tmp_path / "b.pth"

    assert_same(read_torch_file(rewritten({})), torch.load(path))
    bomb = rewritten({"a/data/0": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED)
    half = rewritten({"a/data/0": members["a/data/0"][:-4]})
    for file in (bomb, half):
        with pytest.raises(InputError, match="not a complete file of torch weights"):
            read_torch_file(file)
        half = rewritten({"a/data/0": members["a/data/0"][:-4]})
    with pytest.raises(InputError, match="was written on a big-endian machine"):
        read_torch_file(rewritten({"a/byteorder": b"big"}))
    with pytest.raises(InputError, match="holds a TorchScript program"):
        read_torch_file(rewritten({"a/constants.pkl": b""}))
    np.savez(tmp_path / "c.npz", a=np.ones(3))
    with pytest.raises(InputError, match=r"c.npz is a zip file that torch.save did not write"):
        read_torch_file(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (11,), (1,)), (1, (10,), (1,)), (0, (3, 4), (4, 1)), (-1, (2,), (1,)),
        (0, (-2,), (1,)), (0, (2,), (-1,)), (0, (2,), (10,)), (0, (2, 2), (1,)),
        (0, (2**62, 2**62), (0, 0)), (0, (1.0,), (1,)), (2**63, (1,), (1,)),
        (0, (1,) * 65, (1,) * 65),
    ],
)  # fmt: skip
def test_tensors_stay_in_their_storage(offset, shape, strides):
    storage = Storage(np.dtype("f4"), 10)
    with pytest.raises(ValueError, match=r"."):
        checked_tensor(storage, offset, shape, strides)
    assert checked_tensor(storage, 1, (3, 3), (4, 0)).shape == (3, 3)


# --- Damaged files --------------------------------------------------------------------------------


def examples() -> list[bytes]:
    """Return small files of both formats, with most of what people save."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    value = {
        "model": model.state_dict(), "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/x")),
        "best": np.float64(70.0), "array": np.arange(5), "device": torch.device("cpu"),
        "half": torch.ones(300).bfloat16(), "rows": torch.arange(12.0).reshape(3, 4).T,
        "counts": collections.Counter({1: 2}), "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }  # fmt: skip
    planted = {"model": model.state_dict(), "hook": Planted(os.mkdir, "planted")}
    files = []
    for content, options in [
        (value, {}), (value, {"pickle_protocol": 4}), (planted, {}),
        ({k: v for k, v in value.items() if k != "float8"},
         {"_use_new_zipfile_serialization": False}),
        (planted, {"_use_new_zipfile_serialization": False}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        files.append(buffer.getvalue())
    return files


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the file with one to four changes: other bytes or bits, a piece removed, doubled or
    moved, or the end cut off.
    """
    data = bytearray(content)
    # The bytes of the pickle and the zip's directories matter most, those of the numbers least.
    places = [i for i in range(len(data)) if i < 3000 or i > len(data) - 3000]
    for _ in range(draw.randint(1, 4)):
        kind, place = draw.randrange(7), draw.choice(places) % max(len(data), 1)
        length = draw.choice((1, 2, 4, 8, 64))
        if kind == 0:
            data[place : place + length] = draw.randbytes(length)
        elif kind == 1 and data:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            other = draw.choice(places) % max(len(data), 1)
            data[place : place + length] = data[other : other + length]
        elif kind == 5:
            data[place : place + length] = draw.choice((b"\xff", b"\0", b"\x7f")) * length
        elif draw.random() < 0.3:
            del data[place:]
    return bytes(data)


KEYS = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict().keys()


def fuzz(count: int, directory: pathlib.Path, seed: int = 0) -> dict[str, float]:
    """Read `count` mutated files. Any exception except InputError is an error."""
    draw, files = random.Random(seed), examples()
    path = directory / "mutated.pth"
    refused, slowest = 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path.write_bytes(mutated(files[number % len(files)], draw))
        start = time.process_time()
        try:
            if path.stat().st_size:
                arrays = read_weights(path, KEYS)
                assert all(array.astype(np.float32).size >= 0 for array in arrays.values())
        except InputError as error:
            refused += "\n" not in str(error)
        slowest = max(slowest, time.process_time() - start)
        path.unlink()  # the next file must not replace the one that is still mapped
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"files": count, "refused": refused, "slowest, s": slowest, "grown, MB": grown}


@pytest.mark.filterwarnings("ignore::flaxnets.WeightsWarning")
def test_damaged_files_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = fuzz(400, tmp_path)
    assert figures["refused"] > 200
    assert figures["slowest, s"] < 5
    assert figures["grown, MB"] < 50
    assert not list(tmp_path.iterdir())  # nothing was planted


def test_every_shorter_file_is_one_sentence(tmp_path):
    for content in examples():
        for size in range(0, len(content), 97):
            (tmp_path / "a.pth").unlink(missing_ok=True)
            (tmp_path / "a.pth").write_bytes(content[:size])
            with pytest.raises(InputError):
                read_torch_file(tmp_path / "a.pth")


if __name__ == "__main__":  # python tests/unit/test_torch_files.py 20000 [SEED]
    import sys
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print(fuzz(int(sys.argv[1]), pathlib.Path(directory), seed), os.listdir())
