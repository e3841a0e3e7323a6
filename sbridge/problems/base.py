"""The problems that solvers solve: bridges and stochastic optimal control."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sbridge.devices import Movable
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.laws import Density, Law, Samples, check_same_kind, check_same_space
from sbridge.laws.scaling import AffineScaling
from sbridge.problems.costs import (
    AbsorbedCost,
    Costs,
    Quadratic,
    RunningCost,
    StateCost,
    StoppingSet,
    TerminalCost,
    absorb,
    checked,
    rescaled_cost,
)
from sbridge.problems.ends import Growth, Reweighting, ScaledRatio, SoftEnds
from sbridge.processes import Direction, LinearProcess, Process, rescale
from sbridge.processes.noise_coordinates import no_closed_form
from sbridge.random import generator

_PROBE_ROWS = 8
Balance = SoftEnds | Growth | Reweighting
"""What the two ends may change, before or after they are chosen."""


@dataclass(frozen=True, eq=False)
class BridgeProblem(Movable):
    """The Schrödinger bridge problem: ``min KL(P ‖ R) + E_P∫V dt`` between ``P_0 = source`` and ``P_T = target``.

    With :class:`~sbridge.problems.SoftEnds` the ends may change: ``P_0`` and ``P_T`` are near them at a price.

    Args:
        source: the distribution at ``t = 0``.
        target: the distribution at ``t = T``.
        reference: ``R``, with its horizon ``T``.
        state_cost: ``V`` per unit time: a :class:`~sbridge.problems.Quadratic`, which every solver takes, or a function
            ``(t, x) → (batch,)``; ``None``: zero, the plain bridge.
        balance: :class:`~sbridge.problems.SoftEnds` or :class:`~sbridge.problems.Growth`; ``None``: both ends are hard.

    Raises:
        InvalidInputError: if an end is not a distribution or the reference is not a process, or if the dimensions
            differ, or the dtypes or devices of two sets of samples, or if the state cost returns another shape, or if
            two hard ends have different masses.
        NonFiniteError: if the state cost is NaN or infinite at states of the ends.
        UnsupportedError: for a balance with a state cost.
    """

    source: Law
    target: Law
    reference: Process
    state_cost: StateCost | None = field(default=None, kw_only=True)
    balance: Balance | None = field(default=None, kw_only=True)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        names = ("source", "target")
        for name in names:
            _check_law(getattr(self, name), name)
        _check_process(self.reference, "reference")
        check_same_space(self.source, self.target, names)
        if isinstance(self.source, Samples) and isinstance(self.target, Samples):
            check_same_kind(self.source.rows, self.target.rows, names)
        if None not in (places := (self.source.device, self.target.device)) and places[0] != places[1]:
            raise InvalidInputError(
                f"the source is on {places[0]}, the target on {places[1]}: move one of them, target.to(source.device)."
            )
        if self.reference.dim not in (None, self.source.dim):
            raise InvalidInputError(
                f"the reference process has dimension {self.reference.dim}, the data have {self.source.dim}."
            )
        if self.state_cost is not None:
            self._check_cost(self.state_cost)
        self._check_balance()

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.source.dim

    @property
    def linear_reference(self) -> LinearProcess:
        """Returns the reference if it has closed-form transitions; raises UnsupportedError otherwise."""
        if not isinstance(self.reference, LinearProcess):
            raise UnsupportedError(unknown_transition("this", self.reference))
        return self.reference

    @property
    def running_cost(self) -> RunningCost | None:
        """The state cost if it is a function that is no part of the reference, otherwise ``None``."""
        return None if isinstance(self.state_cost, (Quadratic, AbsorbedCost)) else self.state_cost

    def near(self, direction: Direction) -> Law:
        """Returns the end at which a direction begins."""
        return self.source if direction is Direction.FORWARD else self.target

    def far(self, direction: Direction) -> Law:
        """Returns the end at which a direction stops."""
        return self.near(direction.opposite)

    def rescaled(self, scaling: AffineScaling) -> BridgeProblem:
        """Returns the same problem for ``X̃ = (X − shift)/scale``, with scaled ends and reference."""
        return BridgeProblem(
            self.source.rescaled(scaling),
            self.target.rescaled(scaling),
            rescale(self.reference, scaling),
            state_cost=None if self.state_cost is None else rescaled_cost(self.state_cost, scaling),
            balance=_rescaled(self.balance, scaling),
        )

    def with_ends(
        self, balance: Reweighting | None, source: Law | None = None, target: Law | None = None
    ) -> BridgeProblem:
        """Returns the plain problem between the ends that were chosen, ``None``: the given ones."""
        return replace(self, source=source or self.source, target=target or self.target, balance=balance)

    def absorbed(self) -> BridgeProblem:
        """Returns the same problem with a quadratic state cost as part of the reference: a plain bridge.

        Its reference is :func:`~sbridge.problems.quadratic_reference`, its ``state_cost`` the
        :class:`~sbridge.problems.AbsorbedCost` of the two ends that is left. Other problems are returned as they
        are. :func:`~sbridge.fitting.solve` and :func:`~sbridge.fitting.fit` do this first.

        Raises:
            UnsupportedError: if the reference has no constant linear coefficients.
            InvalidInputError: if the cost repels beyond the conjugate time.
        """
        if not isinstance(self.state_cost, Quadratic):
            return self
        if not isinstance(self.reference, LinearProcess):
            raise UnsupportedError(no_closed_form(self.reference))
        reference, left = absorb(self.reference, self.state_cost)
        return replace(self, reference=reference, state_cost=left)

    def _check_balance(self) -> None:
        """Checks that hard ends have equal masses, and that soft ends stand alone."""
        balance = self.balance
        if balance is not None and not isinstance(balance, (SoftEnds, Growth, Reweighting)):
            raise InvalidInputError(
                "balance must be an ends.SoftEnds(source, target) in nats, an ends.Growth(rate), or None; got "
                f"{shown(balance)}."
            )
        if balance is not None and self.state_cost is not None:
            raise UnsupportedError(
                "ends that may change and a state cost are not solved together: what a cost adds at the ends would "
                "change with them. Leave one of them out."
            )
        masses = [end.mass if isinstance(end, Samples) else 1.0 for end in (self.source, self.target)]
        hard = balance is None or (isinstance(balance, SoftEnds) and balance.hard)
        if hard and not math.isclose(*masses, rel_tol=1e-9):
            raise InvalidInputError(
                f"the source has mass {masses[0]:g}, the target {masses[1]:g}, and neither end may change: give "
                "balance=ends.SoftEnds(source, math.inf), so that rows grow or die, or leave masses out."
            )

    def _check_cost(self, cost: StateCost) -> None:
        """Checks the dimension of a cost, and the values of a function at states of both ends."""
        if isinstance(cost, (Quadratic, AbsorbedCost)):
            if cost.dim != self.dim:
                raise InvalidInputError(f"the state cost has dimension {cost.dim}, the data have {self.dim}.")
            return
        if not callable(cost):
            raise InvalidInputError(
                "state_cost must be a function (t, x) -> (batch,), a costs.Quadratic(matrix, vector), or None; got "
                f"{shown(cost)}."
            )
        ends = {"source": self.source, "target": self.target}
        probes = {name: _probe(end) for name, end in ends.items() if not isinstance(end, Density)}
        for t in (0.0, 0.5 * self.reference.horizon, self.reference.horizon):
            for name, x in probes.items():
                try:
                    value = cost(t, x)
                except (TypeError, AttributeError) as error:
                    raise InvalidInputError(
                        "state_cost is called as V(t, x), with one time and states of shape (batch, dim), and must "
                        f"return shape (batch,). It raised: {error}"
                    ) from error
                checked(value, x, "state cost", f"t = {t:g} and states of the {name}")


def _rescaled(balance: Balance | None, scaling: AffineScaling) -> Balance | None:
    if isinstance(balance, Growth):
        return Growth(ScaledRatio(balance.rate, scaling))
    return balance.rescaled(scaling) if isinstance(balance, Reweighting) else balance


def _check_law(value: object, name: str) -> None:
    if not isinstance(value, Law):
        raise InvalidInputError(
            f"{name} must be a distribution such as Samples(rows), Gaussian(mean, covariance) or Point(x), got a "
            f"{type(value).__name__}."
        )


def _check_process(value: object, name: str) -> None:
    if not isinstance(value, Process):
        raise InvalidInputError(f"{name} must be a process such as BrownianMotion(1.0), got a {type(value).__name__}.")


def unknown_transition(who: str, process: Process, instead: str = "IPF()") -> str | None:
    """Explains why ``who``, which needs closed-form transitions, cannot use ``process``; ``None`` if it is linear.

    All solvers use this sentence; ``instead`` names a solver that can use any process.
    """
    if isinstance(process, LinearProcess):
        return None
    needed = (
        f"{who[:1].upper()}{who[1:]} needs transitions in closed form, which {type(process).__name__} does not have"
    )
    if process.scale(0.0).singular:
        return f"{needed}: use an UnderdampedLangevin process, whose force is linear, as reference."
    return (
        f"{needed}: use a LinearProcess such as BrownianMotion or OrnsteinUhlenbeck as reference, or {instead}, which "
        "simulates any reference."
    )


def noiseless_coordinate(who: str, process: Process) -> str | None:
    """Explains why ``who``, which needs noise in every coordinate, cannot use ``process``; ``None`` if it has it."""
    if not process.scale(0.0).singular:
        return None
    return (
        f"{who} needs noise in every coordinate, and that of {type(process).__name__} enters velocities alone. If its "
        "force is linear, use UnderdampedLangevin with MatchedBridge(), or with GaussianBridge() for Gaussian ends."
    )


def unsampled_end(who: str, problem: BridgeProblem) -> str | None:
    """Explains why ``who``, which needs draws of both ends, cannot solve ``problem``; ``None`` if it can."""
    if not any(isinstance(end, Density) for end in (problem.source, problem.target)):
        return None
    return (
        f"{who} needs ends that can be sampled, and not unnormalised densities: draw samples of them first, or use "
        "AdjointBridge(), which takes densities at either end or at both."
    )


def not_plain(who: str, problem: BridgeProblem) -> str | None:
    """Explains why ``who``, which solves plain bridges, cannot take ``problem``; ``None`` if it is one.

    It is one after a quadratic state cost has become part of the reference, and after soft ends have been chosen.
    """
    if isinstance(problem.balance, (SoftEnds, Growth)):
        return (
            f"{who} takes soft ends or growth once the ends are chosen: pass exact.balanced(problem), as solve() does."
        )
    return _unabsorbed_cost(who, problem)


def _unabsorbed_cost(who: str, problem: BridgeProblem) -> str | None:
    """Explains why ``who``, which solves plain bridges, cannot take the state cost; ``None`` if there is none left."""
    cost = problem.state_cost
    if cost is None or isinstance(cost, AbsorbedCost):
        return None
    if isinstance(cost, Quadratic):
        return f"{who} takes a quadratic state cost as part of the reference: pass problem.absorbed(), as solve() does."
    return (
        f"{who} takes no state cost that is a plain function. IPF() learns the bridge of any differentiable one; in "
        "one or two dimensions pde.solve_schroedinger(process, source, target, grid, state_cost=…) takes any. If it is "
        "quadratic or linear, pass costs.Quadratic(matrix, vector), which every solver takes."
    )


@dataclass(frozen=True, eq=False)
class ControlProblem(Movable):
    """Stochastic optimal control: ``min_u E[∫ f(t, X) + ½|u|² dt + g(X_T)]``, ``dX = (b + σu) dt + σ dW``.

    Equivalently ``min KL(P ‖ P*)`` over controlled path measures with this start, ``dP*/dR ∝ exp(−∫ f dt − g)`` given
    ``X_0``.

    Args:
        process: the uncontrolled process ``R``, with its horizon ``T``.
        start: the distribution at ``t = 0``, which can be sampled, such as :class:`~sbridge.laws.Point`.
        running_cost: ``f(t, x) → (batch,)`` per unit time, called step by step with one ``t``; ``None``: zero.
        terminal_cost: ``g(x) → (batch,)``; ``None``: zero.
        stopping: paths end when they first enter this set, as seen on the stored path; ``None``: never.

    Raises:
        InvalidInputError: if the dimensions differ, or a cost is not a function or returns another shape.
        NonFiniteError: if a cost is NaN or infinite at start states.
        UnsupportedError: if the start cannot be sampled.
    """

    process: Process
    start: Law
    running_cost: RunningCost | None = None
    terminal_cost: TerminalCost | None = None
    stopping: StoppingSet | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        _check_process(self.process, "process")
        _check_law(self.start, "start")
        if self.process.dim not in (None, self.start.dim):
            raise InvalidInputError(
                f"the process has dimension {self.process.dim}, the start distribution has {self.start.dim}."
            )
        for name in ("running_cost", "terminal_cost"):
            cost = getattr(self, name)
            if cost is not None and not callable(cost):
                raise InvalidInputError(f"{name} must be a function or None, got {shown(cost)}.")
        if isinstance(self.start, Density):
            raise UnsupportedError(
                "a control problem needs a start distribution that can be sampled; a Density cannot."
            )
        x = self.probe
        self.costs.rate(0.0, x)
        self.costs.end(x)
        if self.stopping is not None and bool((self.stopping.level(x) >= 0).all()):
            raise InvalidInputError("all start states are in the stopping set, so there is nothing to control.")

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.start.dim

    @property
    def costs(self) -> Costs:
        """The costs and the stopping set, in the form that the losses take."""
        return Costs(self.running_cost, self.terminal_cost, self.stopping)

    @property
    def probe(self) -> Tensor:
        """A few fixed start states, with the dtype and device of all states."""
        return _probe(self.start)


def _probe(law: Law) -> Tensor:
    with torch.no_grad():
        return law.sample(_PROBE_ROWS, generator(0))
