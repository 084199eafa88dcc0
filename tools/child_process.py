"""Report how a script ended that another one started."""

from flaxnets.errors import InputError


def check_status(script: str, status: int) -> None:
    """Raise InputError unless a script ended well; `status` is its `returncode`.

    A script that fails says why itself. One that the system killed says nothing.
    """
    if status < 0:
        raise InputError(
            f"{script} was killed by signal {-status}; where memory was short, give it more or a "
            "smaller --batch-size"
        )
    if status:
        raise InputError(f"{script} failed; see its message above")
