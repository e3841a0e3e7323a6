"""Names of data sets given by users: a file, an array in a file, or a built-in data set. Nothing is read here."""

from __future__ import annotations

import stat
from pathlib import Path

from sbridge.errors import FileFormatError, UnknownNameError, unknown_name

BUILT_IN = (
    "checkerboard",
    "circles",
    "eight_gaussians",
    "gaussian",
    "noisy_moons",
    "pinwheel",
    "s_curve",
    "swiss_roll",
    "two_moons",
    "two_spirals",
)
"""Names of the built-in data sets."""
ENDINGS = (".npy", ".npz", ".csv", ".tsv", ".h5ad")
WRITTEN = (".npy", ".csv", ".h5ad")
KINDS = "a .npy, .npz, .csv, .tsv or .h5ad file, or the name of a built-in data set"


def file_and_key(spec: str) -> tuple[Path | None, str | None]:
    """Splits ``spec`` into a file and the array within it; no file if ``spec`` can only be a built-in name.

    Raises:
        FileFormatError: if it can only be a file, of a kind that is not read.
    """
    if spec in BUILT_IN:
        return None, None
    before, colon, key = spec.rpartition(":")
    if colon and Path(before).suffix.lower() in (".npz", ".h5ad"):
        return Path(before), key
    path = Path(spec)
    if path.suffix.lower() in ENDINGS:
        return path, None
    if path.exists() or path.suffix or len(path.parts) > 1:
        what = "a folder" if path.is_dir() else f"a {path.suffix!r} file" if path.suffix else "without an ending"
        missing = "" if path.exists() else " that does not exist"
        raise FileFormatError(f"{path} is {what}{missing}. Give {KINDS}.")
    return None, None


def is_stream(path: Path) -> bool:
    """Returns whether ``path`` is a pipe or the standard input, and not a file with its own name."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and path.is_relative_to("/dev"))


def existing_file(path: Path) -> Path:
    """Returns ``path``; raises FileFormatError unless it is a file that is not empty."""
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileFormatError(f"{path} {kind}. Give {KINDS}.")
    if path.stat().st_size == 0:
        raise FileFormatError(f"{path} is empty (0 bytes). Save it again.")
    return path


def unknown_set(name: str) -> UnknownNameError:
    """Makes the error for a word that is neither a file nor a built-in data set."""
    return UnknownNameError(f"{unknown_name('data set', name, BUILT_IN)} To read a file, give {KINDS}.")


def check_spec(spec: str) -> None:
    """Checks that ``spec`` names something that exists.

    Raises:
        FileFormatError: for a file that is missing, empty or of a kind that is not read.
        UnknownNameError: for a word that is neither a file nor a built-in set.
    """
    if is_stream(Path(spec)):
        return
    path, _ = file_and_key(spec)
    if path is not None:
        existing_file(path)
    elif spec not in BUILT_IN:
        raise unknown_set(spec)
