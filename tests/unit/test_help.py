"""Test that help and the table of values have every option once, with its default."""

import dataclasses
import re

import pytest
import tyro

from flaxnets import InputError, classify, dense, evaluate
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.runs.help import GROUPS, explained, rows
from flaxnets.runs.options import Options
from flaxnets.script_help import field_texts, parsed, script_help


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
    lines = explained(options()).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 105
    text = " ".join(" ".join(lines).split())
    assert all(f"{row.name} {row.default}" in text for row in rows(options()))
    assert "--learning-rate 0.01*" in text
    text = explained(options(), "saving")
    assert "Newest checkpoints to keep" in text
    assert "--learning-rate" not in text
    with pytest.raises(InputError, match="did you mean 'saving'"):
        explained(options(), "savin")


@pytest.mark.parametrize("width", [80, 120])
def test_columns_of_defaults_are_aligned_and_fit(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = explained(options()).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= min(width, 100)
    first = lines.index("optimisation: the loss, the optimiser and its schedule") + 1
    starts = [[m.start() for m in re.finditer("--", line)] for line in lines[first : first + 3]]
    assert starts[0] == starts[1] == starts[2]
    assert len(starts[0]) >= 2


def test_a_pattern_is_quoted_and_is_no_star_of_the_recipe():
    assert "--muon-keys '*' " in explained(options())


@pytest.mark.parametrize("module", [classify, evaluate, dense])
def test_the_other_scripts_explain_every_option_once_in_groups(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = [name for group in module.GROUPS.values() for name in group]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(module.Options))
    arguments = (module.Options, ["--help"], module.__doc__, module.GROUPS)
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 56
    texts = field_texts(module.Options)
    words = " ".join(" ".join(lines).split())
    for name in names:
        assert texts[name] in words
    for group in module.GROUPS:
        assert f"{group}:" in lines


def test_help_of_a_script_names_choices_defaults_and_what_is_required(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = script_help(dense.Options, dense.__doc__ or "", dense.GROUPS)
    assert "PICTURE --class TEXT [OPTIONS]" in text
    assert "(.png, .pdf, .svg). Default: map.png." in text
    assert "--scales 1, 6" in text
    text = script_help(classify.Options, classify.__doc__ or "", classify.GROUPS)
    assert "PICTURES ... [OPTIONS]" in text
    assert "mirror-and-shift, whole" in text
    text = script_help(evaluate.Options, evaluate.__doc__ or "", evaluate.GROUPS)
    assert "[WORKDIRS ...] [OPTIONS]" in text
    assert "--ensemble, --no-ensemble" in text


def test_a_wrong_option_of_a_script_ends_with_status_2(capsys):
    arguments = (classify.Options, ["a.png", "--tip", "3"], classify.__doc__, classify.GROUPS)
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert ended.value.code == 2
    assert "--top" in capsys.readouterr().err


def test_the_text_under_a_field_is_read():
    assert field_texts(Preprocessing)["image_size"] == "Side of the network's input, in pixels."
