"""Atomic writing of files, and careful reading of JSON with checksums. Nothing here needs torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sbridge.errors import FileFormatError, InvalidInputError, cut, shown

Json = Any


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new binary file that replaces ``path`` when the block succeeds, and is removed otherwise.

    A reader never sees half of it; it is flushed to disk before it takes its name.
    """
    # Opened like any new file, so that its permissions are those the user's umask gives.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def checksum(document: Json) -> str:
    """Returns the SHA-256 of a JSON document, independent of the order of its keys and its white space."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(document: dict[str, Json]) -> dict[str, Json]:
    """Returns ``document`` with its own :func:`checksum` under ``checksum``, for :func:`check_seal`."""
    return {**document, "checksum": checksum(document)}


def check_seal(document: dict[str, Json], path: Path) -> None:
    """Checks the checksum that :func:`sealed` added; raises FileFormatError if the document was changed."""
    content = {key: value for key, value in document.items() if key != "checksum"}
    if document.get("checksum") != checksum(content):
        raise FileFormatError(
            f"{path} was changed after it was saved, or is damaged: its SHA-256 does not match. Copy or save it again."
        )


def read_json(path: Path) -> Json:
    """Reads JSON from ``path``; raises FileFormatError if it is missing, truncated, nested too deeply or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, numbers of thousands of digits
        raise FileFormatError(f"{path} is not readable JSON ({error}); is it truncated?") from error


def as_path(value: str | os.PathLike[str]) -> Path:
    """Returns ``value`` as a path; raises InvalidInputError for what cannot name a file."""
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise InvalidInputError(f"a path is needed, such as 'models/bridge', got {shown(value)}.")
    return Path(value)


def unreadable(path: Path, error: OSError) -> FileFormatError:
    """Makes the error for a file that the operating system does not give."""
    known = {errno.ENOENT: "does not exist", errno.EISDIR: "is a folder, not a file"}
    if error.errno in known:
        return FileFormatError(f"{path} {known[error.errno]}.")
    return FileFormatError(f"{cut(str(path))} cannot be read: {error.strerror}.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
