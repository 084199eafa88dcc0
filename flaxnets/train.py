"""Train any network of the library: `python -m flaxnets.train --arch vgg19`.

Values that are not given come from the network's recipe; `--arch NAME --help` shows them. Running
the same command again continues an interrupted run.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import shlex
import sys
import time
from typing import get_args

import tyro

import flaxnets.data as data
from flaxnets.errors import one_of
from flaxnets.models import NAMES
from flaxnets.recipes import Version
from flaxnets.runs.help import help_text
from flaxnets.runs.options import Options, default_values
from flaxnets.tables import print_table
from flaxnets.terminal import (
    arguments,
    command_line,
    compilation_cache,
    one_sentence_errors,
    reuse_memory,
    versions,
)


def parse(arguments: list[str]) -> tuple[Options, data.Source]:
    """Return the options and the opened data set.

    The network, the recipe and the data set are read first, because they decide the defaults of all
    other options. With `--help` the options are printed, and the process ends.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--arch", default="vgg19")
    first.add_argument("--recipe", default="paper")
    first.add_argument("--dataset", default="digits")
    first.add_argument("--data-dir", "--data_dir")
    chosen, _ = first.parse_known_args(arguments)
    one_of(NAMES, chosen.arch, "architecture")  # before a data set is opened
    one_of(get_args(Version), chosen.recipe, "recipe")
    for flag in ("-h", "--help"):
        if flag in arguments:
            print(help_text(*arguments[arguments.index(flag) + 1 :][:1], **vars(chosen)))
            sys.exit()
    if sys.stdout.isatty():
        print(f"{chosen.arch} on {chosen.dataset}")  # TensorFlow is imported next, for seconds
    source = data.open_source(chosen.dataset, chosen.data_dir)
    values = default_values(
        chosen.arch, source.kind, chosen.recipe, has_classes=bool(source.class_names)
    )
    default = Options(values, **vars(chosen))
    flat = (tyro.conf.OmitArgPrefixes,)
    options = tyro.cli(
        Options, args=arguments, default=default, config=flat, prog="python -m flaxnets.train"
    )
    return options, source


def main(arguments: list[str]) -> None:
    """Start or continue the run that the arguments describe, and print its result."""
    options, source = parse(arguments)
    # Imported after `--help` is answered: jax and linen take a second.
    from flaxnets.runs.assembly import assemble
    from flaxnets.runs.loop import Interrupted, fit
    from flaxnets.runs.processes import join
    from flaxnets.runs.report import dry_run, result, summary_of
    from flaxnets.training.parallel import DataParallel

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
    workdir, command = run.open_workdir(), shlex.join(command_line())
    start = time.perf_counter()
    try:
        row = fit(run.program, workdir, title=run.title, options=options.run)
    except Interrupted as stopped:
        workdir.close()
        print(f"{stopped}; continue with: {command}")
        sys.exit(130)
    if row["steps"] > run.program.steps:
        workdir.leave()
        epochs = f"has {row['epoch']} epochs already, and {options.values.epochs} were asked for"
        print(f"{run.title}: the run {epochs}; see {run.path}")
        return
    seconds = time.perf_counter() - start
    summary = summary_of(run, row, seconds=seconds, versions=versions(), command=command)
    workdir.finish(summary, run.title)
    print(result(run, summary))


def run() -> None:
    """Run the script with the arguments of the command line."""
    reuse_memory()
    with one_sentence_errors():
        main(arguments())


if __name__ == "__main__":
    run()
