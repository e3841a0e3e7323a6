"""What solvers return: a bridge, as a forward and a backward process, or a controlled process."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbridge import files
from sbridge.controls.base import Control, ScaledControl, Time, ZeroControl
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.laws import Law, as_rows
from sbridge.measures import Direction, EndKernel, PathMeasure, Paths
from sbridge.problems import BridgeProblem, ControlProblem
from sbridge.processes.base import Process
from sbridge.random import Seed
from sbridge.registry import Json, decode, encode, register, registered
from sbridge.scaling import AffineScaling

FORMAT = "sbridge.bridge/1"
CONTROL_FORMAT = "sbridge.control/1"


@register
@dataclass(frozen=True, eq=False)
class ScaledKernel:
    """An end kernel of the model's units, used in the units of the data."""

    kernel: EndKernel
    scaling: AffineScaling

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One far end per row of ``x``."""
        return self.scaling.to_data(self.kernel.draw(self.scaling.to_model(x), generator))

    def mean(self, x: Tensor) -> Tensor:
        """Conditional mean of the far end per row of ``x``."""
        return self.scaling.to_data(self.kernel.mean(self.scaling.to_model(x)))


@register
@dataclass(frozen=True, eq=False)
class Bridge:
    """The path law ``P`` with prescribed ends nearest to a reference, as two processes with the same law.

    Attributes:
        forward: runs from the source at ``t = 0``: drift ``b + σu``.
        backward: runs from the target at ``t = T`` down to ``0``: drift ``−b + σû`` in reversed time.

    Rows go in as arrays or tensors and come out as tensors, in the units of the data, dtype and device of the input.
    """

    forward: PathMeasure
    backward: PathMeasure

    @property
    def reference(self) -> Process:
        """The reference process."""
        return self.forward.process

    @property
    def horizon(self) -> float:
        """``T``."""
        return self.reference.horizon

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.forward.start.dim

    def transport(self, x0: Tensor | np.ndarray, *, seed: Seed) -> Tensor:
        """One draw of ``X_T`` given ``X_0 = x0`` per row."""
        return self.forward.transport(self._rows(x0, "x0"), seed=seed)

    def conditional_mean(self, x0: Tensor | np.ndarray, *, seed: Seed) -> Tensor:
        """``E[X_T | X_0 = x0]`` per row; exact where the solver knows the plan, else a mean of 64 draws."""
        return self.forward.conditional_mean(self._rows(x0, "x0"), seed=seed)

    def interpolate(self, x0: Tensor | np.ndarray, t: float, *, seed: Seed) -> Tensor:
        """One draw of ``X_t`` given ``X_0 = x0`` per row, ``0 ≤ t ≤ T``."""
        return self.forward.interpolate(self._rows(x0, "x0"), t, seed=seed)

    def velocity(self, t: Time, x: Tensor | np.ndarray) -> Tensor:
        """Current velocity ``v = b + ½ σ (u − û)``: the flow ``ẋ = v(t, x)`` has the bridge's marginals (Nelson 1966).

        Along bridge time, in a :meth:`reversed` bridge too.
        """
        rows = self._rows(x, "x")
        controls = {measure.direction: measure.control for measure in (self.forward, self.backward)}
        u, u_hat = (controls[d] for d in (Direction.FORWARD, Direction.BACKWARD))
        half = torch.zeros_like(rows) if u is None else 0.5 * u(t, rows)
        half = half if u_hat is None else half - 0.5 * u_hat(t, rows)
        return self.reference.drift(t, rows) + self.reference.scale(t).to(rows)(half)

    def reversed(self) -> Bridge:
        """The same law with the ends swapped: ``transport`` then goes from the target to the source.

        All times stay bridge times, so ``interpolate(x, t)`` then starts at ``t = T``.
        """
        return Bridge(self.backward, self.forward)

    def save(self, path: str | Path) -> None:
        """Writes ``PATH.json`` (structure) and ``PATH.safetensors`` (numbers), each atomically.

        The JSON says under ``contains_training_rows`` whether rows of the data are in the files.

        Raises:
            UnsupportedError: if a part is a plain function or an unregistered class.
        """
        tree, tensors = encode(self)
        document = {"format": FORMAT, "contains_training_rows": contains_training_rows(tree), "bridge": tree}
        _write(Path(path), document, tensors)

    def rescaled(self, scaling: AffineScaling, problem: BridgeProblem) -> Bridge:
        """This bridge of scaled data as the bridge of the data, whose ``problem`` stands in units of the data."""
        return Bridge(
            _in_data_units(self.forward, scaling, problem.reference, problem.source),
            _in_data_units(self.backward, scaling, problem.reference, problem.target),
        )

    def _rows(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        rows = as_rows(x, name, least=1)
        if rows.shape[1] != self.dim:
            raise InvalidInputError(f"{name} has {rows.shape[1]} columns, the bridge lives in {self.dim} dimensions.")
        return rows


@dataclass(frozen=True, eq=False)
class ControlSolution:
    """A control problem and the controlled process that a solver found for it.

    Attributes:
        problem: what was solved.
        measure: the process from the problem's start under the learned control, on the solver's grid.
    """

    problem: ControlProblem
    measure: PathMeasure

    @property
    def control(self) -> Control:
        """``u(t, x)``, in noise units."""
        return ZeroControl() if self.measure.control is None else self.measure.control

    @property
    def horizon(self) -> float:
        """``T``."""
        return self.problem.process.horizon

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.problem.dim

    def sample(self, n: int, *, seed: Seed) -> Paths:
        """``n`` controlled paths, kept whole; beyond a stopping time too, which ``problem.stopping`` marks."""
        return self.measure.sample(n, seed=seed)

    def save(self, path: str | Path) -> None:
        """Writes control, grid and step rule to ``PATH.json`` and ``PATH.safetensors``; not the problem.

        The costs of a problem are functions, which files cannot hold: :func:`load_control` takes the problem again.

        Raises:
            UnsupportedError: if the control contains a plain function or an unregistered class.
        """
        measure = self.measure
        parts = {"control": measure.control, "grid": measure.grid, "rule": measure.rule}
        tree, tensors = encode(parts)
        _write(Path(path), {"format": CONTROL_FORMAT, "dim": self.dim, "horizon": self.horizon, **tree}, tensors)


def load_control(path: str | Path, problem: ControlProblem) -> ControlSolution:
    """The solution of ``problem`` that ``ControlSolution.save(path)`` wrote.

    Raises:
        FileFormatError: if a file is missing, truncated, or not of this format.
        InvalidInputError: if the problem has another dimension or horizon than the one that was solved.
    """
    document, tensors = _read(Path(path), CONTROL_FORMAT, "mapping")
    found = (document.get("dim"), document.get("horizon"))
    if found != (problem.dim, problem.process.horizon):
        raise InvalidInputError(
            f"{path} was saved for dimension {found[0]} and horizon {found[1]}, the problem has {problem.dim} and "
            f"{problem.process.horizon:g}."
        )
    parts = decode({"mapping": document["mapping"]}, tensors)
    grid, rule = parts["grid"], parts["rule"]
    return ControlSolution(problem, PathMeasure(problem.process, parts["control"], problem.start, grid=grid, rule=rule))


def load(path: str | Path) -> Bridge:
    """The bridge that ``Bridge.save(path)`` wrote. Only registered classes are made; nothing is executed.

    Raises:
        FileFormatError: if a file is missing, truncated, or not of this format.
    """
    document, tensors = _read(Path(path), FORMAT, "bridge")
    bridge = decode(document["bridge"], tensors)
    if not isinstance(bridge, Bridge):
        raise FileFormatError(f"{path}.json holds a {type(bridge).__name__}, not a Bridge.")
    return bridge


def contains_training_rows(tree: Json) -> bool:
    """Whether the encoded object names a class that keeps rows of the data."""
    if isinstance(tree, list):
        return any(contains_training_rows(item) for item in tree)
    if not isinstance(tree, dict):
        return False
    if "class" in tree and getattr(registered(tree["class"]), "holds_training_rows", None) is True:
        return True
    return any(contains_training_rows(item) for item in tree.values())


def _in_data_units(measure: PathMeasure, scaling: AffineScaling, reference: Process, start: Law) -> PathMeasure:
    control: Control | None = None if measure.control is None else ScaledControl(measure.control, scaling)
    kernel = None if measure.end_kernel is None else ScaledKernel(measure.end_kernel, scaling)
    return replace(measure, process=reference, control=control, start=start, end_kernel=kernel)


def _write(path: Path, document: dict[str, Json], tensors: dict[str, Tensor]) -> None:
    files.write_tensors(path.with_name(path.name + ".safetensors"), tensors)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    files.write_text(path.with_name(path.name + ".json"), text + "\n")


def _read(path: Path, form: str, key: str) -> tuple[dict[str, Json], dict[str, Tensor]]:
    document = files.read_json(path.with_name(path.name + ".json"))
    if not isinstance(document, dict) or document.get("format") != form or key not in document:
        kind = "bridge" if form == FORMAT else "control"
        raise FileFormatError(f"{path}.json is not a saved {kind} (expected format {form!r}).")
    return document, files.read_tensors(path.with_name(path.name + ".safetensors"))
