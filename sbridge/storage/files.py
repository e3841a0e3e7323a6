"""Atomic writing and careful reading of safetensors files, never pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors, save as save_safetensors
from torch import Tensor

from sbridge.errors import FileFormatError
from sbridge.storage.documents import unreadable, write_bytes


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes a safetensors file atomically, with tensors on the CPU and contiguous. Returns its SHA-256."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    content = save_safetensors(plain)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def checksum_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and numbers, independent of the order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return found.hexdigest()


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, whose SHA-256 may be prescribed.

    Raises:
        FileFormatError: if the file is missing, truncated, of another format or of another SHA-256.
    """
    try:
        content = path.read_bytes()
        tensors = load_safetensors(content)
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FileFormatError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise FileFormatError(
            f"{path} is not the file that its .json names: their SHA-256 differ. It is damaged, or of another save; "
            "copy both files of one save."
        )
    return tensors
