"""Reader of annotated data (``.h5ad``), through anndata."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sbridge.data.snapshots import as_times
from sbridge.errors import FileFormatError, InvalidInputError, UnknownNameError, listed, shown, unknown_name
from sbridge.time import times_of_labels

_MOST_TIMES = 100  # a column with more different values is not offered as times


@dataclass(frozen=True, eq=False)
class Annotated:
    """One representation of the cells, ``(cells, columns)``, and their times if requested, ``(cells,)``.

    The array may be sparse. ``names`` are the names of the cells; ``labels`` are the times of the file as text.
    """

    array: Any
    names: np.ndarray
    times: np.ndarray | None
    labels: np.ndarray | None = None

    def time_of(self, word: str) -> float | None:
        """Returns the time that ``word`` denotes: a number, or a label of the file."""
        if self.labels is not None and self.times is not None and word in self.labels:
            return float(self.times[self.labels == word][0])
        try:
            return float(word)
        except ValueError:
            return None


def read_annotated(path: Path, representation: str, time_key: str | None) -> Annotated:
    """Reads ``obsm[representation]`` (or ``X``) and ``obs[time_key]`` of an ``.h5ad`` file.

    Raises:
        InvalidInputError: if anndata is not installed, or times are not numbers.
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
        array = _matrix(path, data) if representation == "X" else data.obsm[representation]
        array = _numbers(array, f"{path}: obsm[{shown(representation)}]")
        names = data.obs_names.to_numpy()
        times, labels = (None, None) if time_key is None else _times(path, data.obs, time_key)
    finally:
        data.file.close()
    return Annotated(array, names, times, labels)


def _anndata(path: Path) -> ModuleType:
    try:
        import anndata  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidInputError(
            f"reading {path} needs the package anndata; install it with the extra 'bio': pip install -c "
            "constraints.txt '.[bio]'."
        ) from error
    return anndata


def _times(path: Path, obs: Any, key: str) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401  (a pandas data frame; pandas is no dependency)
    """Reads ``obs[key]`` as numbers and as text."""
    if key not in obs:
        hint = f" Columns that could hold times: {listed(_candidates(obs))}." if _candidates(obs) else ""
        raise UnknownNameError(f"{unknown_name(f'column of obs in {path}', key, [str(name) for name in obs])}{hint}")
    column = obs[key]
    category = getattr(column, "cat", None)
    ranks = [str(label) for label in category.categories] if category is not None and category.ordered else None
    labels = column.astype(str).to_numpy(dtype=object)
    missing = column.isna().to_numpy()
    if missing.any():
        names = listed(obs.index[missing].tolist(), 6)
        raise InvalidInputError(
            f"{path}: obs[{shown(key)}] is missing for {int(missing.sum())} cells: {names}. Drop them."
        )
    return as_times(labels, f"{path}: obs[{shown(key)}]", ranks), labels


def _candidates(obs: Any) -> list[str]:  # noqa: ANN401
    """Returns the columns of ``obs`` with few different numbers, labels with a number, or an ordered category."""
    found = []
    for name in obs:
        values = obs[name].dropna().astype(str).unique().tolist()
        category = getattr(obs[name], "cat", None)
        if 2 <= len(values) <= _MOST_TIMES and (times_of_labels(values) or (category is not None and category.ordered)):
            found.append(str(name))
    return found


def _matrix(path: Path, data: Any) -> Any:  # noqa: ANN401
    try:
        return data.X[:]
    except (KeyError, TypeError) as error:
        known = f"the representations in obsm: {listed(data.obsm)}" if len(data.obsm) else "a file with data"
        raise InvalidInputError(f"{path} has no matrix X; choose one of {known} (--rep).") from error


def _numbers(array: Any, name: str) -> Any:  # noqa: ANN401
    """Converts a representation to an array, or a sparse matrix by rows; raises InvalidInputError for text columns."""
    if hasattr(array, "tocsr"):
        return array.tocsr()
    if not hasattr(array, "dtypes"):
        return np.asarray(array)
    foreign = [f"{shown(column)} ({dtype})" for column, dtype in array.dtypes.items() if dtype.kind not in "iuf"]
    if foreign:
        raise InvalidInputError(
            f"{name} is a data frame with columns that are not numeric: {listed(foreign)}. Drop or convert them, and "
            "save the file again."
        )
    gaps = array.isna()
    if gaps.to_numpy().any():
        column = gaps.columns[gaps.any()][0]
        cells = listed(array.index[gaps[column]].tolist(), 6)
        raise InvalidInputError(
            f"{name}: column {shown(column)} is missing for the cells {cells}. Drop or impute them."
        )
    return array.to_numpy(dtype=np.result_type(*(np.dtype(f"{d.kind}{d.itemsize}") for d in array.dtypes)))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
