"""The binding of oneDNN beside the headers that it is copied from, and what tells of its use."""

import ctypes
import pathlib
import re

import jax
import pytest
import torch

from flaxnets.kernels.onednn import __main__ as onednn_main
from flaxnets.kernels.onednn import calls
from flaxnets.kernels.onednn import library as dnnl
from parity import onednn_only

XLA = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
TORCH = pathlib.Path(torch.__file__).parent / "include" / "oneapi" / "dnnl"
STRUCTS = {
    name: value
    for name, value in vars(calls).items()
    if isinstance(value, type) and issubclass(value, ctypes.Structure)
}
# Of c_api.h's types by their sizes in bytes on 64-bit machines; pointers are matched by their star.
SIZES = {
    "size_t": 8, "int64_t": 8, "int": 4, "XLA_FFI_DataType": 4, "XLA_FFI_Error_Code": 4,
    "XLA_FFI_ExecutionStage": 4, "XLA_FFI_InternalExtension_Type": 4, "XLA_FFI_Handler_Traits": 4,
}  # fmt: skip


def without_comments(text: str) -> str:
    return re.sub(r"//.*|/\*[\s\S]*?\*/", "", text)


def xlas_header() -> str:
    """Under the names of version 0.4."""
    text = without_comments(XLA.read_text())
    if "XLA_FFI_InternalExtension" in text:
        return text
    text = text.replace("XLA_FFI_Extension_Base", "XLA_FFI_InternalExtension")
    return text.replace("XLA_FFI_Extension_Type", "XLA_FFI_InternalExtension_Type")


def fields(header: str, name: str) -> list[tuple[str, str]]:
    """Return the names and types of the fields of a struct in c_api.h."""
    (body,) = re.findall(rf"struct XLA_FFI_{name} {{(.*?)}}", header, re.DOTALL)
    body = re.sub(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", r"\1* \1", body)
    declared = [line.strip() for line in body.split(";") if line.strip()]
    return [(re.findall(r"\w+", line)[-1], line) for line in declared]


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_is_that_of_xlas_header(name):
    """Fields have the same order and sizes; the header may have more at the end."""
    declared = fields(xlas_header(), name)
    ours = STRUCTS[name]._fields_
    assert [field for field, *_ in ours] == [field for field, _ in declared][: len(ours)]
    for (field, kind, *_), (_, line) in zip(ours, declared, strict=False):
        of_struct = re.match(r"XLA_FFI_(\w+) \w+$", line)
        if "*" in line:
            assert ctypes.sizeof(kind) == 8, field
        elif of_struct and of_struct.group(1) in STRUCTS:
            assert kind is STRUCTS[of_struct.group(1)], field
        else:
            (size,) = (size for type_, size in SIZES.items() if line.startswith(f"{type_} "))
            assert ctypes.sizeof(kind) == size, field


def test_the_constants_of_xlas_header():
    header = XLA.read_text()
    assert f"XLA_FFI_Extension_Metadata = {calls._METADATA}," in header
    assert f"XLA_FFI_Error_Code_INTERNAL = {calls._INTERNAL}," in header


def constants(header: str) -> dict[str, int]:
    """Macros and enumerators of C that are numbers or each other's names."""
    found: dict[str, int] = {}

    def value(text: str) -> int | None:
        text = re.sub(r"\b(0x[0-9a-fA-F]+|\d+)U\b", r"\1", text)
        try:
            return eval(text, {}, found)
        except (SyntaxError, NameError, TypeError):
            return None

    for name, text in re.findall(r"^#define (\w+) +(.+)$", header, re.MULTILINE):
        number = value(text)
        if number is not None:
            found[name] = number
    for body in re.findall(r"enum \w*\s*{(.*?)}", re.sub(r"^#.*", "", header, flags=re.MULTILINE),
                           re.DOTALL):  # fmt: skip
        following: int | None = 0
        for entry in filter(None, map(str.strip, body.split(","))):
            name, _, text = entry.partition("=")
            number = value(text) if text else following
            following = None if number is None else number + 1
            if number is not None:
                found[name.strip()] = number
    return found


def test_the_constants_are_those_of_onednns_headers():
    """The header is torch's, of another version 3 than the library: the numbers are the same."""
    names = ("dnnl_common_types.h", "dnnl_types.h", "dnnl_version.h")
    text = "\n".join((TORCH / name).read_text() for name in names)
    header = constants(without_comments(text))
    assert header["DNNL_VERSION_MAJOR"] == 3
    for name, number in vars(dnnl.DNNL).items():
        prefix = "DNNL_" if name.isupper() else "dnnl_"
        assert header[prefix + name] == number, name


@onednn_only
def test_a_command_says_that_it_is_used(capsys):
    onednn_main.main()
    used, convolutions, norms = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"oneDNN 3\.\d+\.\d+ is used, by XLA's foreign function interface \d+\.\d+", used
    )
    assert convolutions == f"{calls.CONVOLUTION}: 3 calls in a training step of one layer"
    assert norms == f"{calls.BATCH_NORM}: 2 calls in a training step of one layer"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [("0", "FLAXNETS_ONEDNN is 0"), ("1", "the package onednn-cpu-gomp is not installed")],
)
def test_a_command_says_why_it_is_not_used(asked, reason, monkeypatch, capsys):
    monkeypatch.setattr(calls, "available", lambda: False)
    monkeypatch.setenv("FLAXNETS_ONEDNN", asked)
    onednn_main.main()
    assert capsys.readouterr().out == f"oneDNN is not used: {reason}\n"
