"""Files written atomically and read with care: JSON and safetensors, never pickle."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors, save as save_safetensors
from torch import Tensor

from sbridge.errors import FileFormatError
from sbridge.registry import Json


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of ``path`` when the block ends well, and vanishes otherwise.

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
    """``content`` under ``path``, atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, atomically; tensors go to the CPU and are made contiguous."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    write_bytes(path, save_safetensors(plain))


def read_json(path: Path) -> Json:
    """The JSON in ``path``; FileFormatError if it is missing, truncated or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is not readable JSON ({error}); is it truncated?") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; FileFormatError if it is missing, truncated or of another format."""
    try:
        return load_safetensors(path.read_bytes())
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist.") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error
