"""Run many processes as one: JAX finds them, and all of them act at the same step."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxnets.errors import InputError
from flaxnets.runs.options import Processes as Processes

TIMEOUT = 300  # seconds that processes wait for each other at the start; JAX's default
# Variables that are 1 if a launcher started only one process. JAX would join a cluster of one, and
# use only one GPU of the machine.
ALONE = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def join(processes: Processes, timeout: int = TIMEOUT) -> None:
    """Join the other processes of the run, if there are any. Afterwards only process 0 prints.

    Call this before JAX is asked for its devices. If the options name no processes, JAX looks for a
    cluster (SLURM, Open MPI, a TPU pod, Kubernetes). If it finds none, this process is the whole
    run.

    Raises InputError for options that do not fit, or if JAX finds a cluster that it cannot join. If
    the other processes do not join within `timeout` seconds, prints a sentence and ends with
    status 2.
    """
    processes.check()
    if not processes.are_named and any(os.environ.get(name) == "1" for name in ALONE):
        return
    # This must come before JAX's own timeout, which aborts the process from C++.
    patience = threading.Timer(timeout, _nobody_came, [processes, timeout])
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.num_processes,
            processes.process_id,
            cluster_detection_method="deactivate" if processes.are_named else None,
            initialization_timeout=timeout + 60,
        )
    except Exception as error:
        if str(error) == "coordinator_address should be defined.":  # no cluster was found
            return
        if not processes.are_named and "must be called before any JAX calls" in str(error):
            return  # the caller uses JAX already, and has joined other processes itself
        raise InputError(
            f"JAX cannot join the processes of this run ({str(error).splitlines()[0]}); give "
            f"coordinator, num processes and process id"
        ) from error
    finally:
        patience.cancel()
    # Compiled code prints too (gloo does). That goes to standard error, not into the run's output.
    ours = os.dup(1) if jax.process_index() == 0 else os.open(os.devnull, os.O_WRONLY)
    sys.stdout = os.fdopen(ours, "w", buffering=1, errors="backslashreplace")
    os.dup2(2, 1)


def _nobody_came(processes: Processes, timeout: int) -> None:
    where = f" at {processes.coordinator}" if processes.coordinator else ""
    print(
        f"error: the processes of this run did not meet{where} within {timeout} seconds; check the "
        f"address of the coordinator, and that all processes were started",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """End every process if one of them raises InputError in the `with` block.

    The others end silently, with the same status.
    """
    failure = None
    try:
        yield
    except InputError as error:
        failure = error
    failures = multihost_utils.process_allgather(np.array(failure is not None))
    if failure is not None:
        raise failure
    if np.any(failures):
        sys.exit(2)


def agreed(flag: bool) -> bool:
    """Return the flag of process 0. Clocks differ, but all processes must save at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


@contextlib.contextmanager
def signals_as_flag() -> Iterator[Callable[[int], bool]]:
    """Give a function that tells after each step whether SIGINT or SIGTERM was received.

    A second signal has its usual effect, at once. With several processes a signal to one is enough:
    JAX tells the others, and all stop after the same step.
    """
    received: list[int] = []
    together = jax.distributed.is_initialized()
    # JAX itself handles SIGTERM in every process that joined others.
    signals = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)

    def handler(number, frame):
        received.append(number)
        for kind in signals:
            signal.signal(kind, before[kind])
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopped(step: int) -> bool:
        if together:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(received)

    before = {kind: signal.signal(kind, handler) for kind in signals}
    try:
        yield stopped
    finally:
        for kind in signals:
            signal.signal(kind, before[kind])
