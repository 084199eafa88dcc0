"""Help and the table of values have every option once, with the default that it has."""

import dataclasses
import re

import pytest
import tyro

from flaxnets import InputError
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.runs.help import GROUPS, field_texts, help_text, rows
from flaxnets.runs.options import Options


def options() -> Options:
    recipe = recipe_for("vgg16", "photographs", "torchvision-v1")
    return Options(recipe, "vgg16", "torchvision-v1")


def leaves(part):
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        yield from leaves(value) if dataclasses.is_dataclass(value) else [field.name]


def test_every_option_has_a_row_and_a_text():
    table = rows(options())
    names = [row.name.removeprefix("--").replace("-", "_") for row in table]
    assert sorted(names) == sorted(leaves(options()))
    assert {row.group for row in table} == set(GROUPS)
    for row in table:
        assert row.text.endswith((".", ":")), row.name


def test_the_names_are_those_of_the_command_line(capsys):
    flat = (tyro.conf.OmitArgPrefixes,)
    with pytest.raises(SystemExit):
        tyro.cli(Options, args=["--help"], default=options(), config=flat)
    text = capsys.readouterr().out
    names = set(re.findall(r"(--[a-z][a-z-]*)[ ,]", text))
    switches = {f"--no-{row.name[2:]}" for row in rows(options()) if not row.kind}
    assert {row.name for row in rows(options())} == names - switches - {"--help"}
    assert switches <= names


def test_a_default_names_its_source():
    table = {row.name: row for row in rows(options())}
    assert (table["--learning-rate"].default, table["--learning-rate"].source) == (
        "0.01", "torchvision-v1"
    )  # fmt: skip
    assert (table["--momentum"].default, table["--momentum"].source) == ("0.9", "library")
    assert (table["--crop"].default, table["--crop"].source) == (
        "random_resized", "torchvision-v1"
    )  # fmt: skip
    assert (table["--flip"].default, table["--workdir"].default) == ("random", "none")
    assert table["--milestones"].kind == "NUMBER ..."
    assert table["--crop"].kind == "random, random_resized"


def test_help_fits_a_screen_and_explains_a_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_text(options()).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 105
    text = " ".join(" ".join(lines).split())
    assert all(f"{row.name} {row.default}" in text for row in rows(options()))
    assert "--learning-rate 0.01*" in text
    explained = help_text(options(), "saving")
    assert "Newest checkpoints that are kept" in explained
    assert "--learning-rate" not in explained
    with pytest.raises(InputError, match="did you mean 'saving'"):
        help_text(options(), "savin")


def test_the_text_under_a_field_is_read():
    assert field_texts(Preprocessing)["image_size"] == "Pixels fed to the network."
