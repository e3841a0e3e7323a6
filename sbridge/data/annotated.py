"""Readers of annotated data: ``.h5ad`` files, through anndata, and ``AnnData`` objects."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sbridge.data.snapshots import as_times
from sbridge.errors import FileFormatError, InvalidInputError, UnknownNameError, listed, shown, unknown_name
from sbridge.laws.frames import frame_numbers, is_frame
from sbridge.time import times_of_labels

_MOST_TIMES = 100  # a column with more different values is not offered as times


@dataclass(frozen=True, eq=False)
class Annotated:
    """One representation of the cells, ``(cells, columns)``, and their times if requested, ``(cells,)``.

    The array may be sparse. ``names`` are the names of the cells; ``labels`` are the times of the file as text; ``obs``
    is the data frame of annotations.
    """

    array: Any
    names: np.ndarray
    times: np.ndarray | None
    labels: np.ndarray | None = None
    obs: Any = None

    def time_of(self, word: str) -> float | None:
        """Returns the time that ``word`` denotes: a number, or a label of the file."""
        if self.labels is not None and self.times is not None and word in self.labels:
            return float(self.times[self.labels == word][0])
        try:
            return float(word)
        except ValueError:
            return None


@runtime_checkable
class AnnotatedCells(Protocol):
    """An ``AnnData`` object: cells with annotations ``obs`` and representations ``obsm``."""

    obs: Any
    obsm: Any
    uns: Any
    obs_names: Any


def read_annotated(path: Path, representation: str, time_key: str | None) -> Annotated:
    """Reads ``obsm[representation]`` (or ``X``) and ``obs[time_key]`` of an ``.h5ad`` file.

    Raises:
        InvalidInputError: if anndata is not installed, or times are not numbers.
        FileFormatError: if the file is unreadable.
        UnknownNameError: for a representation or a key that is not there.
    """
    anndata = anndata_for(path)
    try:
        # Backed: the matrix X stays on disk unless it is asked for.
        data = anndata.read_h5ad(path, backed="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        reason = _first_line(error)
        raise FileFormatError(f"{path} is not a readable .h5ad file ({reason}). Is it truncated?") from error
    try:
        return annotated(data, str(path), representation, time_key)
    finally:
        data.file.close()


def annotated(data: AnnotatedCells, name: str, representation: str, time_key: str | None) -> Annotated:
    """Takes one representation, and times if requested, from an ``AnnData`` that messages call ``name``.

    Raises:
        InvalidInputError: for times that are missing or no numbers, and for a representation that is not numeric.
        UnknownNameError: for a representation or a key that is not there.
    """
    if representation != "X" and representation not in data.obsm:
        raise unknown_name(f"representation in {name}", representation, ["X", *data.obsm])
    array = _matrix(name, data) if representation == "X" else data.obsm[representation]
    array = _numbers(array, f"{name}: obsm[{shown(representation)}]")
    names = data.obs_names.to_numpy()
    times, labels = (None, None) if time_key is None else _times(name, data, time_key)
    return Annotated(array, names, times, labels, data.obs)


def column_of(data: AnnotatedCells, key: str, name: str, hint: str = "") -> Any:  # noqa: ANN401  (a pandas column; pandas is no dependency)
    """Returns ``obs[key]``; raises UnknownNameError, ending in ``hint``, if there is none."""
    if key not in data.obs:
        raise UnknownNameError(f"{unknown_name(f'column of obs in {name}', key, [str(one) for one in data.obs])}{hint}")
    return data.obs[key]


def anndata_for(path: Path) -> ModuleType:
    """Imports anndata to read or write ``path``; raises InvalidInputError if it is not installed."""
    try:
        import anndata  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidInputError(
            f"the file {path} needs the package anndata; install it with the extra 'bio': pip install -c "
            "constraints.txt '.[bio]'."
        ) from error
    return anndata


def _times(name: str, data: AnnotatedCells, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads ``obs[key]`` as numbers and as text."""
    known = [] if key in data.obs else _candidates(data.obs)
    column = column_of(data, key, name, f" Columns that could hold times: {listed(known)}." if known else "")
    category = getattr(column, "cat", None)
    ranks = [str(label) for label in category.categories] if category is not None and category.ordered else None
    labels = column.astype(str).to_numpy(dtype=object)
    missing = column.isna().to_numpy()
    if missing.any():
        cells = listed(data.obs_names[missing].tolist(), 6)
        raise InvalidInputError(
            f"{name}: obs[{shown(key)}] is missing for {int(missing.sum())} cells: {cells}. Drop them."
        )
    return as_times(labels, f"{name}: obs[{shown(key)}]", ranks), labels


def _candidates(obs: Any) -> list[str]:  # noqa: ANN401
    """Returns the columns of ``obs`` with few different numbers, labels with a number, or an ordered category."""
    found = []
    for name in obs:
        values = obs[name].dropna().astype(str).unique().tolist()
        category = getattr(obs[name], "cat", None)
        if 2 <= len(values) <= _MOST_TIMES and (times_of_labels(values) or (category is not None and category.ordered)):
            found.append(str(name))
    return found


def _matrix(name: str, data: Any) -> Any:  # noqa: ANN401
    try:
        return data.X[:]
    except (KeyError, TypeError) as error:
        known = f"the representations in obsm: {listed(data.obsm)}" if len(data.obsm) else "a file with data"
        raise InvalidInputError(f"{name} has no matrix X; choose one of {known} (--rep).") from error


def _numbers(array: Any, name: str) -> Any:  # noqa: ANN401
    """Converts a representation to an array, or a sparse matrix by rows; raises InvalidInputError for text columns."""
    if hasattr(array, "tocsr"):
        return array.tocsr()
    return frame_numbers(array, name) if is_frame(array) else np.asarray(array)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
