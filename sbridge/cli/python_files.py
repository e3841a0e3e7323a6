"""Problems and costs in Python files."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from sbridge.errors import InvalidInputError, listed, shown


def names_in(path: Path) -> dict[str, Any]:
    """Executes a file and returns what it defines.

    Raises:
        InvalidInputError: if there is no such file, or it is not Python.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist.")
    try:
        return runpy.run_path(str(path))
    except SyntaxError as error:
        raise InvalidInputError(f"{path} is not valid Python: {error}.") from error


def named(place: str, option: str) -> Any:  # noqa: ANN401 - whatever the file defines
    """Returns what ``FILE.py:NAME`` defines, as :func:`named_in` does."""
    return named_in(place, option)[0]


def named_in(place: str, option: str) -> tuple[Any, dict[str, Any]]:
    """Returns what ``FILE.py:NAME`` defines, and all that the file defines, which is executed once.

    Raises:
        InvalidInputError: if the place is of another form, or not there.
    """
    path, colon, name = place.rpartition(":")
    if not colon:
        raise InvalidInputError(f"{option} takes FILE.py:NAME, the name of what the file defines, got {shown(place)}.")
    names = names_in(Path(path))
    if name not in names:
        own = listed([known for known in names if not known.startswith("_")])
        raise InvalidInputError(f"{path} does not define {name}; it defines {own}.")
    return names[name], names
