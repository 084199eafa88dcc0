"""Name the workdir of a run, and check that it holds no other run."""

import dataclasses
import json
import os
import pathlib
import warnings
from typing import Any

from flaxnets.data.plan import Plan
from flaxnets.errors import InputError, InputWarning
from flaxnets.recipes import Preprocessing, Recipe
from flaxnets.runs.files import read_json


def default_workdir(arch: str, dataset: str) -> pathlib.Path:
    """Return the workdir `runs/ARCH-DATASET`.

    It is the same for all spellings of the path of a folder or file. Old runs used the path as it
    was typed; if such a workdir exists, it is returned.
    """
    here = os.path.join(os.getcwd(), "")
    new, old = (
        pathlib.Path("runs") / f"{arch}-{name.replace('/', '-').replace(':', '-')}"
        for name in (_absolute(dataset, below=here), dataset.rstrip("/"))
    )
    return old if old.exists() and not new.exists() else new


def stored_value(path: pathlib.Path, key: str) -> Any:
    """Return a value of the config of the run that `path` holds; None if it holds none."""
    file = path / "config.json"
    config = read_json(file) if file.exists() else None
    return config.get(key) if isinstance(config, dict) else None


def check_same_run(path: pathlib.Path, config: dict[str, Any], may_change: tuple[str, ...]) -> None:
    """Raise InputError unless `path` is free or holds a run with the same config.

    The values named in `may_change` may differ. A changed number of examples is only a warning.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"workdir {path} is a file; expected a directory")
    file = path / "config.json"
    if not file.exists():
        if path.exists() and (path / "checkpoints").exists():
            raise InputError(
                f"workdir {path} holds checkpoints, but no config.json of a run; choose another "
                f"workdir"
            )
        return
    before = read_json(file)
    now = json.loads(json.dumps(config))  # tuples become lists, as in the file
    before = _up_to_date(_with_plan(before, now))
    may_change = (*may_change, "examples")
    changed = [k for k in now if k not in may_change and not _same(k, before.get(k), now[k])]
    if changed:
        key = changed[0]
        raise InputError(
            f"workdir {path} holds a run with {key.replace('_', ' ')} {_short(before.get(key))}, "
            f"not {_short(now[key])}; choose another workdir or remove this one"
        )
    _warn_of_other_sizes(before.get("examples"), now.get("examples"))


def _with_plan(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run from before plans were stored, with the plan that it had.

    Its plan followed from its preprocessing. Its interpolation was that of policies alone, so it is
    not compared.
    """
    if "plan" in before or "preprocessing" not in before or "preprocessing" not in now:
        return before
    values = now["preprocessing"] | before["preprocessing"]
    values["interpolation"] = now["preprocessing"]["interpolation"]
    return (
        {key: now[key] for key in ("plan", "kind") if key in now}
        | before
        | {"preprocessing": values}
    )


def _up_to_date(before: dict[str, Any]) -> dict[str, Any]:
    """Return the config of an old run with values and operations as they are written today.

    A value that it lacks is set to today's default, which is what the run used.
    """
    before = _defaults(Recipe) | before
    if isinstance(before.get("preprocessing"), dict):
        values = _defaults(Preprocessing) | before["preprocessing"]
        if isinstance(values["flip"], bool):
            values["flip"] = "random" if values["flip"] else "none"
        before["preprocessing"] = values
    if "plan" in before:
        plans = {name: Plan.from_json(rows).to_json() for name, rows in before["plan"].items()}
        before["plan"] = json.loads(json.dumps(plans))
    return before


def _defaults(kind: type) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(defaults))


def _same(key: str, before: Any, now: Any) -> bool:
    """Return whether an option has the same value; different spellings of a path are equal."""
    if key in ("dataset", "init_from") and isinstance(before, str) and isinstance(now, str):
        return _absolute(before) == _absolute(now)
    return before == now


def _absolute(name: str, below: str = "") -> str:
    """Return the absolute path of a file, or of a data set `folder:PATH`, without a prefix `below`.

    Different names of anything else stay different.
    """
    kind, colon, path = name.partition(":")
    if not colon:
        kind, path = "", name
    return kind + colon + os.path.abspath(os.path.expanduser(path)).removeprefix(below)


def _warn_of_other_sizes(before: Any, now: Any) -> None:
    """Warn if the numbers of examples differ. `before` is None in runs that did not record it."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return
    names = {"train": "training", "test": "test"}
    changes = [
        f"{before[split]} {name} examples before, {now[split]} now"
        for split, name in names.items()
        if before.get(split) not in (None, now.get(split))
    ]
    if changes:
        text = f"the data set has changed since this run was started: {'; '.join(changes)}"
        warnings.warn(text, InputWarning, stacklevel=4)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"{value[0]!r} ... {value[-1]!r} ({len(value)} in all)"
    return repr(value)
