"""Trains any network of the library: `python experiments/train.py --arch vgg19`.

Values that are not given come from the network's recipe, which `--arch NAME --help` shows. The same
command again goes on where it stopped.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import shlex
import sys
import time
from typing import get_args

import tyro

from flaxnets import create_model, data
from flaxnets.errors import one_of
from flaxnets.recipes import Version
from flaxnets.runs.assembly import assemble
from flaxnets.runs.loop import Interrupted, fit
from flaxnets.runs.options import Options, default_values
from flaxnets.runs.processes import join
from flaxnets.runs.report import dry_run, result, summary_of
from flaxnets.terminal import (
    arguments,
    compilation_cache,
    one_sentence_errors,
    print_table,
    reuse_memory,
    versions,
)
from flaxnets.training.parallel import DataParallel


def parse(arguments: list[str]) -> tuple[Options, data.Source]:
    """Return the options and the data set, which are read first: the network and the kind of data
    decide the defaults of everything else. For help, the name of the data set has to do.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--arch", default="vgg19")
    first.add_argument("--recipe", default="paper")
    first.add_argument("--dataset", default="digits")
    first.add_argument("--data-dir", "--data_dir")
    chosen, _ = first.parse_known_args(arguments)
    create_model(chosen.arch)  # a wrong name is answered before a data set is opened
    one_of(get_args(Version), chosen.recipe, "recipe")
    if not {"-h", "--help"}.isdisjoint(arguments):
        show_help(arguments, chosen)
    if sys.stdout.isatty():
        print(f"{chosen.arch} on {chosen.dataset}")  # TensorFlow is imported next, for seconds
    source = data.open_source(chosen.dataset, chosen.data_dir)
    values = default_values(
        chosen.arch, source.kind, chosen.recipe, has_classes=bool(source.class_names)
    )
    return options_of(arguments, Options(values, **vars(chosen))), source


def show_help(arguments: list[str], chosen: argparse.Namespace) -> None:
    """Print every option with its default, and end the process; opens no data set."""
    kind, note = data.kind_of(chosen.dataset), ""
    if kind is None:
        kind = "photographs"
        note = f"\nThe defaults are those for photographs: help does not open {chosen.dataset}."
    classes = data.has_classes(chosen.dataset)
    values = default_values(chosen.arch, kind, chosen.recipe, has_classes=classes)
    options_of(arguments, Options(values, **vars(chosen)), note)


def options_of(arguments: list[str], default: Options, note: str = "") -> Options:
    text, flat = f"{__doc__}{note}", (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(Options, args=arguments, default=default, description=text, config=flat)


def main(arguments: list[str]) -> None:
    options, source = parse(arguments)
    if options.compilation_cache:
        compilation_cache()
    options.check()
    join(options.processes)
    run = assemble(options, source, DataParallel(options.parallel))
    for note in run.notes:
        print(note)
    if options.dry_run:
        for table in dry_run(run):
            print_table(*table)
        return
    workdir, command = run.open_workdir(), shlex.join(["python", *sys.argv])
    start = time.perf_counter()
    try:
        row = fit(run.program, workdir, title=run.title, options=options.run)
    except Interrupted as stopped:
        workdir.close()
        print(f"{stopped}; go on with: {command}")
        sys.exit(130)
    if row["steps"] > run.program.steps:
        workdir.leave()
        asked = f"epoch {row['epoch']} of {options.values.epochs} asked"
        print(f"{run.title}: the run is already at {asked}; see {run.path}")
        return
    seconds = time.perf_counter() - start
    summary = summary_of(run, row, seconds=seconds, versions=versions(), command=command)
    workdir.finish(summary, run.title)
    print(result(run, summary))


if __name__ == "__main__":
    reuse_memory()
    with one_sentence_errors():
        main(arguments())
