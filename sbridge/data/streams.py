"""Copies piped rows to a temporary file, so that they can be read more than once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from sbridge.errors import FileFormatError

_FIRST_BYTES = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"\x89HDF": ".h5ad"}
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def spooled(path: Path) -> Path:
    """Copies the content of ``path`` to a temporary file, with the ending for its kind: text or binary.

    Raises:
        FileFormatError: if it delivers nothing, or cannot be opened.
    """
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="sbridge-"))
    handle, name = tempfile.mkstemp(dir=_FOLDERS[0].name)
    try:
        with path.open("rb") as source, os.fdopen(handle, "wb") as copy:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}.") from error
    copied = Path(name)
    with copied.open("rb") as file:
        first = file.read(8)
    if not first:
        raise FileFormatError(f"{path} delivered no bytes. Does the command before the pipe write rows?")
    kind = next((kind for magic, kind in _FIRST_BYTES.items() if first.startswith(magic)), ".csv")
    return copied.rename(copied.with_suffix(kind))
