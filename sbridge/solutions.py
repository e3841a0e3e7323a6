"""Results of solvers: a bridge, as a forward and a backward process, or a controlled process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from sbridge.controls.base import Control, ScaledControl, Time, ZeroControl
from sbridge.devices import Device, Movable, as_device, check_device
from sbridge.display import short_repr
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError, shown
from sbridge.laws import Law, as_rows
from sbridge.laws.frames import F, Frame, check_columns, columns_of
from sbridge.laws.scaling import AffineScaling
from sbridge.laws.shapes import as_given, shape_of
from sbridge.laws.stored import UnkeptRows, row_count
from sbridge.measures import Direction, PathMeasure, Paths, Times
from sbridge.measures.measure import ScaledKernel
from sbridge.modes import standard_modes
from sbridge.parts import moved
from sbridge.problems import AbsorbedCost, BridgeProblem, ControlProblem, Reweighting
from sbridge.problems.costs import RunningCost
from sbridge.processes.base import Process
from sbridge.random import Seed
from sbridge.storage.documents import Json
from sbridge.storage.pairs import read_pair, stem_of, write_pair
from sbridge.storage.registry import NOT_MADE, decode, encode, register, registered

FORMAT = "sbridge.bridge/2"
CONTROL_FORMAT = "sbridge.control/2"


@register
@dataclass(frozen=True, eq=False)
class Bridge(Movable):
    """The path measure ``P`` with prescribed ends that is closest to a reference, as two processes.

    Attributes:
        forward: runs from the source at ``t = 0``: drift ``b + σu``.
        backward: runs from the target at ``t = T`` down to ``0``: drift ``−b + σû`` in reversed time.
        state_cost: of a bridge with a quadratic state cost, which is part of its reference: what the cost adds to
            ``KL(P ‖ reference)`` at the two ends. If the cost is a function, that function: it is no part of the
            reference, and a bridge with it cannot be saved. ``None`` for a plain bridge.
        balance: of a bridge with soft ends: growth of source rows, and the part of the target that is explained.
        columns: names of the columns of the data frames that the bridge was fitted to; ``None`` for arrays.
        shape: of one sample, if the bridge was fitted to arrays of more than two dimensions, such as images; paths and
            controls have flat rows all the same.
        stopped: why and when training ended early (:class:`~sbridge.training.StopTraining`); ``None`` for a whole fit.

    Methods take samples as arrays, tensors or data frames and return tensors, in the units of the data, with the dtype
    of the input and on the device of the bridge; :meth:`to` copies it to another one. A tensor on another device is
    refused; arrays and data frames, which have none, are copied. :meth:`transport`, :meth:`interpolate` (one time) and
    :meth:`conditional_mean` of a data frame give a data frame with its index and columns; of samples in another shape,
    samples in that shape. Their results have no gradient history.

    Draws depend on the seed and on the number of samples of the call.
    """

    forward: PathMeasure
    backward: PathMeasure
    state_cost: AbsorbedCost | RunningCost | None = field(default=None, kw_only=True)
    balance: Reweighting | None = field(default=None, kw_only=True)
    columns: tuple[str, ...] | None = field(default=None, kw_only=True)
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)
    stopped: str | None = field(default=None, kw_only=True)

    __repr__ = short_repr

    @property
    def reference(self) -> Process:
        """The reference process."""
        return self.forward.process

    @property
    def horizon(self) -> float:
        """The duration ``T``."""
        return self.reference.horizon

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.forward.start.dim

    @property
    def device(self) -> torch.device | None:
        """The device of its ends and networks, and of its results; ``None`` if it has no tensors of either kind."""
        return self.backward.device if self.forward.device is None else self.forward.device

    @overload
    def transport(self, x0: Tensor | np.ndarray, *, seed: Seed) -> Tensor: ...
    @overload
    def transport(self, x0: F, *, seed: Seed) -> F: ...
    def transport(self, x0: Any, *, seed: Seed) -> Any:
        """Draws ``X_T`` given ``X_0 = x0`` once per row."""
        return as_given(self.forward.transport(self.rows(x0, "x0"), seed=seed), x0)

    @overload
    def conditional_mean(self, x0: Tensor | np.ndarray, *, seed: Seed) -> Tensor: ...
    @overload
    def conditional_mean(self, x0: F, *, seed: Seed) -> F: ...
    def conditional_mean(self, x0: Any, *, seed: Seed) -> Any:
        """Computes ``E[X_T | X_0 = x0]`` per row; exact where the solver knows the plan, else a mean of 64 draws."""
        return as_given(self.forward.conditional_mean(self.rows(x0, "x0"), seed=seed), x0)

    @overload
    def interpolate(self, x0: Tensor | np.ndarray, t: float | Times, *, seed: Seed) -> Tensor: ...
    @overload
    def interpolate(self, x0: F, t: float, *, seed: Seed) -> F: ...
    def interpolate(self, x0: Any, t: float | Times, *, seed: Seed) -> Any:
        """Draws ``X_t`` given ``X_0 = x0`` once per row, ``0 ≤ t ≤ T``.

        Several times give shape ``(len(t), n, dim)``: states of one path per row, drawn jointly.
        """
        return as_given(self.forward.interpolate(self.rows(x0, "x0"), t, seed=seed), x0)

    @standard_modes()
    def current_velocity(self, t: Time, x: Tensor | np.ndarray) -> Tensor:
        """Computes the current velocity ``v = b + ½ σ (u − û)``: ``ẋ = v(t, x)`` has the same marginals (Nelson 1966).

        Half the sum of the mean velocities given the past, ``b + σu``, and given the future, ``b − σû``. It refers to
        bridge time, also for a :meth:`reversed` bridge.

        Args:
            t: a bridge time, or one for each row.
            x: states, shape ``(batch, dim)``.

        Returns:
            units of state per unit time, shape ``(batch, dim)``.
        """
        rows = self.rows(x, "x")
        u, u_hat = self._control_values(t, rows)
        half = torch.zeros_like(rows) if u is None else 0.5 * u
        half = half if u_hat is None else half - 0.5 * u_hat
        return self.reference.drift(t, rows) + self.reference.scale(t).to(rows)(half)

    @standard_modes()
    def osmotic_velocity(self, t: Time, x: Tensor | np.ndarray) -> Tensor:
        """Computes the osmotic velocity ``½ σ (u + û) = ½ σσᵀ ∇log p_t``, with ``p_t`` the marginal (Nelson 1966).

        Half the difference of the mean velocities given the past and given the future. The two expressions are equal if
        the two processes are one measure, as those of an exact bridge are. It does not change when the bridge is
        :meth:`reversed`.

        Args, Returns: as for :meth:`current_velocity`.
        """
        rows = self.rows(x, "x")
        return self.reference.scale(t).to(rows)(0.5 * self._control_sum(t, rows))

    @standard_modes()
    def score(self, t: Time, x: Tensor | np.ndarray) -> Tensor:
        """Computes the score ``∇log p_t = σ^{−ᵀ}(u + û)`` of the marginal, in inverse units of state.

        Args: as for :meth:`current_velocity`.
        """
        rows = self.rows(x, "x")
        return self.reference.inverse_scale(t).T.to(rows)(self._control_sum(t, rows))

    def _control_values(self, t: Time, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Computes ``u`` and ``û``, whichever of the two measures runs first; ``None`` for no control."""
        controls = {measure.direction: measure.control for measure in (self.forward, self.backward)}
        u, u_hat = (controls[d] for d in (Direction.FORWARD, Direction.BACKWARD))
        return None if u is None else u(t, rows), None if u_hat is None else u_hat(t, rows)

    def _control_sum(self, t: Time, rows: Tensor) -> Tensor:
        return sum((u for u in self._control_values(t, rows) if u is not None), torch.zeros_like(rows))

    def reversed(self) -> Bridge:
        """Returns the bridge with its ends swapped: ``transport`` then goes from the target to the source.

        All times stay bridge times, so ``interpolate(x, t)`` then starts at ``t = T``.
        """
        return replace(self, forward=self.backward, backward=self.forward)

    def of(self, problem: BridgeProblem) -> Bridge:
        """Returns this bridge of a plain problem with what is left of a state cost, or of soft ends."""
        cost, balance = problem.state_cost, problem.balance
        return replace(
            self,
            state_cost=cost if isinstance(cost, AbsorbedCost) else problem.running_cost,
            balance=balance if isinstance(balance, Reweighting) else None,
        )

    def save(self, path: str | Path, *, keep_rows: bool = True) -> None:
        """Writes ``PATH.json`` (structure) and ``PATH.safetensors`` (numbers), each atomically.

        The JSON contains the SHA-256 of both files. Its field ``contains_training_rows`` says whether they contain
        samples of the data.

        Args:
            path: with or without one of the two endings.
            keep_rows: whether samples at the ends are saved. Without them the bridge transports given rows, and its
                ends cannot be drawn from.

        Raises:
            UnsupportedError: if a part is a plain function or an unregistered class; without rows, if a control is made
                of rows of the data, as those of SinkhornBridge and the backward one of MixtureBridge are.
        """
        save_bridge(self if keep_rows else _without_rows(self), path)

    def rescaled(self, scaling: AffineScaling, problem: BridgeProblem) -> Bridge:
        """Converts this bridge of scaled data to data units, those of ``problem``."""
        return Bridge(
            _in_data_units(self.forward, scaling, problem.reference, problem.source),
            _in_data_units(self.backward, scaling, problem.reference, problem.target),
            stopped=self.stopped,
        ).of(problem)

    def rows(self, x: Tensor | np.ndarray | Frame, name: str) -> Tensor:
        """Returns samples as a tensor ``(n, dim)``; arrays and data frames on the device of the bridge.

        Raises:
            InvalidInputError: for another number of columns, a tensor on another device, a data frame with other
                columns than those of the fit, and what :func:`~sbridge.laws.as_rows` refuses.
        """
        columns = columns_of(x)
        if columns is not None and self.columns is not None:
            check_columns(columns, self.columns, name, "the bridge was fitted on")
        self.check_shape(x, name)
        rows = as_rows(x, name, least=1)
        if rows.shape[1] != self.dim:
            raise InvalidInputError(f"{name} has {rows.shape[1]} columns, but the bridge has dimension {self.dim}.")
        if not isinstance(x, Tensor):  # arrays have no device of their own
            return rows if self.device is None else rows.to(self.device)
        check_device(rows, self.device, name, "the bridge")
        return rows

    def check_shape(self, x: object, name: str) -> None:
        """Raises InvalidInputError for samples of another shape than those of the fit; flat rows always fit."""
        shape = shape_of(x)
        if shape is not None and shape != self.shape:
            fitted = f"rows of {self.dim} numbers" if self.shape is None else f"samples of shape {self.shape}"
            raise InvalidInputError(f"{name} has samples of shape {shape}, but the bridge was fitted on {fitted}.")


@dataclass(frozen=True, eq=False)
class ControlSolution(Movable):
    """A control problem and the controlled process that a solver found for it.

    Attributes:
        problem: the problem that was solved.
        measure: the process from the start of the problem under the learned control, on the grid of the solver.
        stopped: why and when training ended early (:class:`~sbridge.training.StopTraining`); ``None`` for a whole one.
    """

    problem: ControlProblem
    measure: PathMeasure
    stopped: str | None = field(default=None, kw_only=True)

    __repr__ = short_repr

    @property
    def control(self) -> Control:
        """The control ``u(t, x)``, in noise units."""
        return ZeroControl() if self.measure.control is None else self.measure.control

    @property
    def horizon(self) -> float:
        """The duration ``T``."""
        return self.problem.process.horizon

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.problem.dim

    def sample(self, n: int, *, seed: Seed) -> Paths:
        """Draws ``n`` controlled paths, not cut at a stopping time, which ``problem.stopping`` marks."""
        return self.measure.sample(n, seed=seed)

    def save(self, path: str | Path) -> None:
        """Writes control, grid and step rule to ``PATH.json`` and ``PATH.safetensors``; not the problem.

        The costs of a problem are functions, which cannot be saved: :func:`load_control` needs the problem again.

        Raises:
            UnsupportedError: if the control contains a plain function or an unregistered class.
        """
        measure = self.measure
        parts = {"control": measure.control, "grid": measure.grid, "rule": measure.rule}
        tree, tensors = encode(parts)
        early = {} if self.stopped is None else {"stopped": self.stopped}
        write_pair(path, {"format": CONTROL_FORMAT, "dim": self.dim, "horizon": self.horizon, **early, **tree}, tensors)


def load_control(path: str | Path, problem: ControlProblem, *, device: Device | None = None) -> ControlSolution:
    """Loads the solution of ``problem`` that ``ControlSolution.save(path)`` wrote.

    Args:
        path: as given to ``save``.
        problem: that was solved.
        device: where to put the solution and its copy of the problem; ``None``: where the problem is.

    Raises:
        FileFormatError: if a file is missing, damaged, or not of this format.
        InvalidInputError: if the problem has another dimension or horizon than the one that was solved, or if there is
            no such device.
    """
    problem = problem if device is None else problem.to(device)
    document, tensors = read_pair(path, CONTROL_FORMAT, "mapping")
    found = (document.get("dim"), document.get("horizon"))
    if found != (problem.dim, problem.process.horizon):
        raise InvalidInputError(
            f"{path} was saved for dimension {found[0]} and horizon {found[1]}, but the problem has {problem.dim} and "
            f"{problem.process.horizon:g}."
        )
    parts = moved(decode({"mapping": document["mapping"]}, tensors), problem.probe.device)
    try:
        grid, rule = parts["grid"], parts["rule"]
        measure = PathMeasure(problem.process, parts["control"], problem.start, grid=grid, rule=rule)
        _check_fit(measure, tensors)
    except NOT_MADE as error:
        raise FileFormatError(
            f"{path} holds parts that do not fit each other or the problem: {shown(error)}."
        ) from error
    return ControlSolution(problem, measure, stopped=document.get("stopped"))


def save_bridge(bridge: Bridge, path: str | Path, run: str | None = None) -> None:
    """Saves ``bridge``; ``run`` is the checksum of the settings and data that the bridge was fitted with."""
    tree, tensors = encode(bridge)
    document = {"format": FORMAT, "contains_training_rows": contains_training_rows(tree), "run": run, "bridge": tree}
    write_pair(path, document, tensors)


def _without_rows(bridge: Bridge) -> Bridge:
    """Returns the bridge without samples at its ends; raises UnsupportedError if there are rows elsewhere in it."""
    forward, backward = (
        measure if row_count(measure.start) is None else replace(measure, start=UnkeptRows(measure.start.dim))
        for measure in (bridge.forward, bridge.backward)
    )
    found = replace(bridge, forward=forward, backward=backward)
    if contains_training_rows(encode(found)[0]):
        raise UnsupportedError(
            "a control of this bridge is made of rows of the data, so it cannot be saved without them: keep_rows=True; "
            "or fit a solver whose controls are networks or closed forms, such as IMF() or GaussianBridge()."
        )
    return found


def load(path: str | Path, *, device: Device = "cpu") -> Bridge:
    """Loads the bridge that ``Bridge.save(path)`` wrote. Only registered classes are created; no code is executed.

    Files of earlier versions carry no checksums: they load with an
    :class:`~sbridge.errors.UnverifiedFileWarning`.

    Args:
        path: as given to ``save``, with or without the ending of one of the two files; or the run folder of a fit.
        device: where to put the bridge, wherever it was when it was saved.

    Raises:
        FileFormatError: if a file is missing, damaged, or not of this format, or if the two files are from different
            saves.
        InvalidInputError: if there is no such device.
    """
    place = as_device(device)
    return moved(load_bridge(path), place)


def load_bridge(path: str | Path, run: str | None = None) -> Bridge:
    """Loads a bridge as :func:`load`; raises FileFormatError unless it was saved with the same ``run``, if given."""
    stem = stem_of(path)
    if os.path.isdir(stem):  # unlike Path.is_dir it is False for names that are too long
        stem = _bridge_in_folder(stem)
    document, tensors = read_pair(stem, FORMAT, "bridge")
    if run is not None and document["format"] == FORMAT and document.get("run") != run:
        raise FileFormatError(f"{stem}.json was fitted with other settings or data than its run folder records.")
    bridge = decode(document["bridge"], tensors)
    if not isinstance(bridge, Bridge):
        raise FileFormatError(f"{stem}.json holds a {type(bridge).__name__}, not a Bridge.")
    try:
        for measure in (bridge.forward, bridge.backward):
            _check_fit(measure, tensors)
    except NOT_MADE as error:
        raise FileFormatError(f"{stem}.json holds parts that do not fit each other: {shown(error)}.") from error
    return bridge


def contains_training_rows(tree: Json) -> bool:
    """Returns whether the encoded object names a class that keeps rows of the data."""
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


def _check_fit(measure: PathMeasure, tensors: dict[str, Tensor]) -> None:
    """Evaluates all parts of a measure at two rows; raises the errors of parts whose shapes or kinds do not fit."""
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    rows = torch.zeros(2, measure.start.dim, dtype=dtype, device=measure.device or "cpu")
    process, t = measure.process, 0.5 * measure.process.horizon
    found = {"drift": process.drift(t, rows), "noise": process.scale(t).to(rows)(rows)}
    if measure.control is not None:
        found["control"] = measure.control(t, rows)
    if measure.end_kernel is not None:
        found["conditional mean"] = measure.end_kernel.mean(rows)
    for name, value in found.items():
        if value.shape != rows.shape:
            raise InvalidInputError(f"the {name} has shape {tuple(value.shape)} for rows of shape {tuple(rows.shape)}")


def _bridge_in_folder(folder: Path) -> Path:
    """Returns the bridge in the run folder of a fit between two data sets."""
    legs = len(list(folder.glob("bridge-*.json")))
    if legs:
        raise FileFormatError(
            f"{folder} holds a time course of {legs} bridges. Load one of them, load({str(folder / 'bridge-1')!r}), or "
            f"all with their times: sbridge.runs.RunFolder(Path({str(folder)!r})).course()."
        )
    if not (folder / "bridge.json").exists():
        raise FileFormatError(f"{folder} is a folder without a bridge.json: not the run folder of a finished fit.")
    return folder / "bridge"
