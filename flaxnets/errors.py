"""Report bad input in one sentence that names the value and the nearest valid choice."""

import difflib
import os
import re
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence for the user."""


class InputWarning(UserWarning):
    """Part of the user's input is ignored; the message is one sentence for the user."""


def shown(name: object) -> str:
    r"""Return the name of a file, or of anything, as text that any terminal and any file can take.

    Bytes of a name that are not UTF-8 appear as "\xe9".
    """
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def one_of(valid: Iterable[str], value: str, what: str) -> str:
    """Return `value` if it is among `valid`.

    Raises InputError otherwise: "unknown architecture 'vgg17'; did you mean 'vgg16'?".
    """
    valid = list(valid)
    if value in valid:
        return value
    near = difflib.get_close_matches(str(value), valid, n=8)
    if not near:
        listed = ", ".join(valid[:12]) + (f" and {len(valid) - 12} more" if len(valid) > 12 else "")
        raise InputError(f"unknown {what} {value!r}; expected one of {listed}")
    nearest = max(near, key=lambda name: _likeness(name, str(value)))
    raise InputError(f"unknown {what} {value!r}; did you mean {nearest!r}?")


def _likeness(name: str, value: str) -> tuple[float, int]:
    """Return how alike two names are, first by their letters, then by the numbers in them.

    So 'vgg17' is nearer to 'vgg16' than to 'vgg11'.
    """
    numbers = [sum(map(int, re.findall(r"\d+", text))) for text in (name, value)]
    return difflib.SequenceMatcher(None, value, name).ratio(), -abs(numbers[0] - numbers[1])
