"""Annotated data (``.h5ad``), through anndata."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sbridge.errors import FileFormatError, InvalidInputError, unknown_name


@dataclass(frozen=True, eq=False)
class Annotated:
    """One representation of the cells, ``(cells, columns)``, and their times if asked for, ``(cells,)``."""

    array: np.ndarray
    times: np.ndarray | None


def read_annotated(path: Path, representation: str, time_key: str | None) -> Annotated:
    """``obsm[representation]`` (or ``X``) and ``obs[time_key]`` of an ``.h5ad`` file.

    Raises:
        InvalidInputError: if anndata is not installed, or times are no numbers.
        FileFormatError: if the file is unreadable.
        UnknownNameError: for a representation or a key that is not there.
    """
    anndata = _anndata(path)
    try:
        # Backed: the matrix X stays on disk unless it is asked for.
        data = anndata.read_h5ad(path, backed="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        reason = _first_line(error)
        raise FileFormatError(f"{path} is not a readable .h5ad file ({reason}). Is it truncated?") from error
    try:
        if representation != "X" and representation not in data.obsm:
            raise unknown_name(f"representation in {path}", representation, ["X", *data.obsm])
        array = data.X[:] if representation == "X" else data.obsm[representation]
        times = None if time_key is None else _times(path, data.obs, time_key)
    finally:
        data.file.close()
    return Annotated(_dense(array), times)


def _anndata(path: Path) -> ModuleType:
    try:
        import anndata  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidInputError(
            f"reading {path} needs the package anndata, which is in the extra 'bio': "
            "pip install -c constraints.txt '.[bio]'."
        ) from error
    return anndata


def _times(path: Path, obs: Any, key: str) -> np.ndarray:  # noqa: ANN401  (a pandas data frame; pandas is no dependency)
    if key not in obs:
        raise unknown_name(f"column of obs in {path}", key, [str(name) for name in obs])
    try:
        times = obs[key].astype(str).astype(float).to_numpy()
    except ValueError as error:
        found = sorted(set(obs[key].astype(str)))
        raise InvalidInputError(
            f"{path}: obs[{key!r}] holds {', '.join(found[:6])}; times must be numbers. Add a column of numbers."
        ) from error
    if not np.isfinite(times).all():
        count = int((~np.isfinite(times)).sum())
        raise InvalidInputError(f"{path}: obs[{key!r}] is missing for {count} cells; drop them.")
    return times


def _dense(array: Any) -> np.ndarray:  # noqa: ANN401  (array, sparse matrix or data frame)
    if hasattr(array, "to_numpy"):
        array = array.to_numpy()
    return np.asarray(array.toarray() if hasattr(array, "toarray") else array)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
