"""A saved object as two files: ``PATH.json``, its structure, and ``PATH.safetensors``, its numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from torch import Tensor

from sbridge.errors import FileFormatError, InvalidInputError, UnverifiedFileWarning, shown
from sbridge.storage import documents, files
from sbridge.storage.documents import Json

_ENDINGS = (".json", ".safetensors")


def stem_of(path: str | Path) -> Path:
    """Returns ``path`` without the ending of one of the two files."""
    path = documents.as_path(path)
    return path.with_suffix("") if path.suffix in _ENDINGS else path


def write_pair(path: str | Path, document: dict[str, Json], tensors: dict[str, Tensor]) -> None:
    """Writes both files, each atomically; the first holds the checksum of the second, and its own."""
    stem = stem_of(path)
    if not stem.name:
        raise InvalidInputError(f"{stem} is a folder; give the path of a file in it, such as '{stem / 'bridge'}'.")
    sha256 = files.write_tensors(stem.with_name(stem.name + ".safetensors"), tensors)
    text = json.dumps(documents.sealed({**document, "tensors": sha256}), indent=1, ensure_ascii=False)
    documents.write_text(stem.with_name(stem.name + ".json"), text + "\n")


def read_pair(path: str | Path, form: str, key: str) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """Reads both files and checks them.

    Args:
        path: with or without one of the two endings.
        form: the format, ``sbridge.KIND/2``; version 1 had no checksums.
        key: a field that the document must have.

    Raises:
        FileFormatError: if a file is missing, damaged or of another format.
    """
    stem = stem_of(path)
    json_file, tensor_file = (stem.with_name(stem.name + ending) for ending in _ENDINGS)
    document = documents.read_json(json_file)
    name = form.partition("/")[0]
    old = f"{name}/1"
    if not isinstance(document, dict) or document.get("format") not in (form, old) or key not in document:
        raise FileFormatError(f"{json_file} is not a saved {name.partition('.')[2]} (expected format {shown(form)}).")
    if document["format"] == old:
        warnings.warn(
            f"{json_file} was saved by an earlier version and carries no checksums, so damage to it or to its "
            ".safetensors file cannot be detected. Load it and save it again.",
            UnverifiedFileWarning,
            stacklevel=3,
        )
        return document, files.read_tensors(tensor_file)
    documents.check_seal(document, json_file)
    return document, files.read_tensors(tensor_file, document["tensors"])
