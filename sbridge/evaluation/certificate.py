"""Bounds on the suboptimality of a bridge that need no exact solution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from sbridge.display import value_and_error
from sbridge.errors import FileFormatError, InvalidInputError, SbridgeError, UnsupportedError, shown
from sbridge.evaluation.report import COPY, MODEL, PERFECT, Quantity, Report
from sbridge.evaluation.rows import shuffled
from sbridge.evaluation.scorer import EvaluationBudget
from sbridge.evaluation.scores import Rows, checked_rows, evaluate, plug_in_directions, reweighted_rows
from sbridge.evaluation.verdict import SCHEMA, Verdict
from sbridge.evaluation.wording import COST, GENERAL_NOTES
from sbridge.exact import MixtureControl, MixturePotential
from sbridge.fitting import solve
from sbridge.laws import Samples
from sbridge.laws.moments import span_fewer
from sbridge.laws.stored import MOST_KNOWN
from sbridge.measures import Direction, Estimate, PathMeasure, energies, martingale
from sbridge.metrics import EnergyDistance
from sbridge.parts import parts_of
from sbridge.problems import AbsorbedCost, BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.random import ROW_BLOCK, Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.storage.documents import Json

_PROBE_ROWS, _LEAST_ROWS = 16, 64
_BOUNDS = ("lower_bound", "energy", "gap")
_BAND = 2.0  # standard errors
_SHARE, _LEAST_ALLOWANCE = 0.1, 0.05  # of the lower bound; nats
_END_SHARE = 0.05


@dataclass(frozen=True)
class EndError:
    """Energy distance between the simulated samples of one end and the data.

    Args:
        value, standard_error: energy distance of the simulated samples, and its standard error.
        floor: energy distance of perfect samples.
        excess_error: standard error of ``value − floor``.
        unmoved: energy distance of the samples that the process starts from.
    """

    value: float
    standard_error: float
    floor: float
    excess_error: float
    unmoved: float


@dataclass(frozen=True, eq=False)
class Certificate:
    """Bounds on the suboptimality of a bridge, which hold for every potential ``g``.

    Attributes:
        lower_bound: ``D(g) = E_{p_T} g − E_{p_0} log c ≤ V*``, the least energy of any bridge between the ends.
        energy: ``½ E∫|u|² dt`` of the bridge. It is an upper bound on ``V*`` only if the end distribution is right.
        gap: ``½E∫|u|² dt + E_{p_0} log c − E_{P^u_T} g = KL(P^u ‖ P^g)``. It bounds the KL divergence of the forward
            process from the best process with the *same* ends.
        report: errors of the simulated end distributions, the errors of perfect samples, and the Jeffreys divergence of
            the two directions.
        judge: the potential ``g``; ``None`` for a certificate that was read from a report.
        components: number of Gaussian components of the judge.
        state_cost: of a bridge with a state cost, which is part of its reference: added to the lower bound it bounds
            ``KL(P ‖ R) + E∫V`` of any bridge, added to the energy it is that of the forward process.
    """

    lower_bound: Estimate
    energy: Estimate
    gap: Estimate
    report: Report
    judge: MixturePotential | None
    components: int
    state_cost: Estimate | None = None

    @property
    def jeffreys(self) -> Quantity | None:
        """The divergence between the two directions; ``None`` where one of them ends in rows of the data."""
        return next((quantity for quantity in self.report.path if quantity.name == "Jeffreys divergence"), None)

    def end_error(self, direction: str) -> EndError:
        """Returns the error at the end of the ``forward`` or ``backward`` process.

        Raises:
            InvalidInputError: if the report has no score for it.
        """
        (column,) = (column.name for column in self.report.columns if column.name != COST)
        own, perfect, unmoved = (self.report.score(direction, name, column) for name in (MODEL, PERFECT, COPY))
        if own.value is None or own.standard_error is None or perfect.value is None or unmoved.value is None:
            raise InvalidInputError(
                f"no error of the end distribution: {own.reason or perfect.reason or unmoved.reason}"
            )
        spread = math.hypot(own.standard_error, perfect.standard_error or 0.0)
        return EndError(own.value, own.standard_error, perfect.value, spread, unmoved.value)

    @property
    def verdict(self) -> Verdict:
        """The conclusion from all numbers, within two standard errors.

        Fail: the error of an end is more than 5 % of the error of unmoved samples; the energy is below the lower bound,
        which is impossible for a process with the right ends; or the two directions differ by more than the allowance.
        Pass: none of these, enough samples to detect them, and a gap within the allowance, which is 10 % of the lower
        bound or .05 nats, whichever is more. Otherwise the result is inconclusive: a large gap may be due to the bridge
        or to the potential.
        """
        return _verdict(self)

    def to_json(self) -> dict[str, Any]:
        """Returns dicts, lists, strings and finite numbers only, without the judging potential."""
        bounds = {name: dataclasses.asdict(getattr(self, name)) for name in _BOUNDS}
        verdict = dataclasses.asdict(self.verdict)
        head = {"schema": SCHEMA, "components": self.components, "verdict": verdict}
        if self.state_cost is not None:
            head["state_cost"] = dataclasses.asdict(self.state_cost)
        return {**head, **bounds, "report": self.report.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Certificate:
        """Reads the certificate that :meth:`to_json` wrote, without its potential.

        Raises:
            FileFormatError: if it is not a certificate, or of another version.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise FileFormatError(f"not a certificate: a mapping with schema {SCHEMA!r} is needed.")
        try:
            bounds = {name: Estimate(**document[name]) for name in _BOUNDS}
            report, components = Report.from_json(document["report"]), int(document.get("components", 0))
            cost = None if "state_cost" not in document else Estimate(**document["state_cost"])
            return cls(**bounds, report=report, judge=None, components=components, state_cost=cost)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the certificate is damaged: {shown(error)}.") from error

    def text(self) -> str:
        """Formats the whole certificate."""
        notes = self.report.notes[GENERAL_NOTES:]
        lines = (wrap(note, 98, initial_indent="  * ", subsequent_indent="    ") for note in notes)
        return "\n".join([self.table(), *(line for note in lines for line in note)]) + "\n"

    def table(self) -> str:
        """Formats the verdict and the numbers, without notes on the rows."""
        judged = f" (judged by {self.components} Gaussian component(s))" if self.components else ""
        lines = [f"certificate, in nats{judged}"]
        lines += wrap(str(self.verdict), 98, initial_indent="  ", subsequent_indent="  ")
        rows = [("lower bound D(g) on the least energy", str(self.lower_bound))]
        rows += [("energy of the forward process", str(self.energy))]
        rows += [("suboptimality gap for its own end distribution", str(self.gap))]
        if self.state_cost is not None:
            rows.append(("the state cost adds, to bound and energy", str(self.state_cost)))
        divergence = self.jeffreys
        if divergence is not None:
            told = f"none: {divergence.reason}"
            if divergence.value is not None and divergence.standard_error is not None:
                told = value_and_error(divergence.value, divergence.standard_error)
            rows.append(("Jeffreys divergence of the directions", told))
        for direction in ("forward", "backward"):
            found = self.end_error(direction)
            told = f"{value_and_error(found.value, found.standard_error)}, floor {found.floor:.3g}"
            rows.append((f"end distribution, {direction:<8} (energy distance)", told))
        return "\n".join([*lines, *(f"  {name:<48}{told}" for name, told in rows)])


def _verdict(found: Certificate) -> Verdict:
    allowed = max(_SHARE * found.lower_bound.value, _LEAST_ALLOWANCE)
    divergence = found.jeffreys
    doubts = []
    for direction in ("forward", "backward"):
        try:
            end = found.end_error(direction)
        except InvalidInputError as error:
            doubts.append(f"the end of the {direction} process could not be scored ({error})")
            continue
        excess, whole = end.value - end.floor, max(end.unmoved - end.floor, 0.0)
        distance = f"energy distance {value_and_error(end.value, end.standard_error)}, floor {end.floor:.3g}"
        if excess - _BAND * end.excess_error > _END_SHARE * whole:
            return Verdict("fail", f"the {direction} process does not end in the data distribution ({distance}).")
        if _BAND * end.excess_error > 0.5 * whole > 0.0:
            doubts.append(f"there are too few rows to tell a right end of the {direction} process from a wrong one")
    if found.energy.value + _BAND * found.energy.standard_error < _below(found.lower_bound):
        spent = f"{value_and_error(found.energy.value, found.energy.standard_error)} nats"
        return Verdict("fail", f"the energy, {spent}, is below the least energy of any process with the right ends.")
    if divergence is not None and divergence.value is not None and divergence.standard_error is not None:
        told = value_and_error(divergence.value, divergence.standard_error)
        if abs(divergence.value) - _BAND * divergence.standard_error > allowed:
            return Verdict("fail", f"the two directions are different processes: they differ by {told} nats.")
    highest = found.gap.value + _BAND * found.gap.standard_error
    if highest > allowed:
        gap = value_and_error(found.gap.value, found.gap.standard_error)
        doubts.append(
            f"the gap, {gap} nats, is not shown to be within the allowed {allowed:.2g}: the bridge uses too much "
            "energy, or the judging potential is too weak to show that it does not; more held-out rows improve the "
            "potential"
        )
    if doubts:
        return Verdict("inconclusive", "; ".join(doubts) + ".")
    return Verdict(
        "pass",
        f"within error both processes end in the data distribution, and the forward one is at most {highest:.2g} nats "
        f"from the best with its own ends ({allowed:.2g} are allowed).",
    )


def _below(bound: Estimate) -> float:
    return bound.value - _BAND * bound.standard_error


def certify(
    bridge: Bridge,
    x0: Rows,
    x1: Rows,
    *,
    seed: Seed,
    potential: MixturePotential | None = None,
    solver: MixtureBridge = MixtureBridge(),
    limits: EvaluationBudget | None = None,
) -> Certificate:
    """Bounds the suboptimality of ``bridge`` on held-out samples, with a potential that is fitted separately.

    For any ``g`` with ``c(x) = E_R[e^{g(X_T)} | X_0 = x]`` in closed form and any control (Korotin et al. 2024,
    arXiv:2310.01174, for the dual; Girsanov's theorem for the gap; both directions of the verification
    argument of stochastic control)::

        D(g) = E_{p_T} g − E_{p_0} log c = V* − KL(P* ‖ P^g)        gap = KL(P^u ‖ P^g) ≥ 0

    For a reversed bridge, the process that is forward in time is certified too. Both processes are simulated on their
    grids, even if their ends have closed forms, because the certificate is about the control. The bounds are exact for
    chains of exact transitions.

    Args:
        bridge: the solution; its reference must be linear.
        x0: held-out samples of the end at which ``bridge.forward`` starts; without ``potential``, one half is used to
            fit it and the other half to compute the bounds.
        x1: held-out samples of the other end, used in the same way.
        seed: of every draw.
        potential: ``g``, in units of the data; ``solver`` fits it by default.
        solver: the solver that fits ``g``.
        limits: how much to compute; ``rows`` also limits the number of paths for energy and gap.

    Raises:
        InvalidInputError: if the control of the bridge is made of this potential (its gap is zero, however good the
            control is), if the potential has another reference, for a solver that fits no potential, for samples of
            another shape, or fewer than 64 samples per end.
        UnsupportedError: if the reference is not linear, or the forward process ends on samples of the data.
    """
    seed, limits = as_seed(seed), limits or EvaluationBudget()
    if not isinstance(solver, MixtureBridge):
        raise InvalidInputError(f"the judging potential is fitted by a MixtureBridge, got a {type(solver).__name__}.")
    _check_reference(bridge, potential)
    bridge, rows = _judged(bridge, x0, x1, seed)
    near, far = (shuffled(side, len(side), derive(seed, i)) for i, side in enumerate(rows))
    forward, backward = (replace(measure, end_kernel=None) for measure in (bridge.forward, bridge.backward))
    if potential is None:
        (fit_near, near), (fit_far, far) = (side.tensor_split(2) for side in (near, far))
        own_near, own_far = reweighted_rows(bridge, [fit_near, fit_far], derive(seed, "ends of the judge"))
        potential = _fitted(bridge, own_near, own_far, solver, derive(seed, "judge"))
    else:
        _check_foreign(bridge, forward, potential, near[:_PROBE_ROWS])
    near, far = reweighted_rows(bridge, [near, far], derive(seed, "ends"))
    bound = dual_bound(potential, near, far)
    spent, gap = _gap(forward, potential, near[: limits.rows], derive(seed, "paths"))
    report = evaluate(
        Bridge(forward, backward), near, far, seed=seed, metrics=(EnergyDistance(),), baselines=(), limits=limits
    )
    cost = bridge.state_cost
    added = _at_ends(cost.start, near, cost.end, far) if isinstance(cost, AbsorbedCost) else None
    return Certificate(bound, spent, gap, report, potential, potential.components, added)


def _judged(bridge: Bridge, x0: Rows, x1: Rows, seed: int) -> tuple[Bridge, list[Tensor]]:
    """Returns the bridge with its forward process in front, and its checked rows in that order."""
    rows = checked_rows(bridge, {"x0": x0, "x1": x1}, MOST_KNOWN, seed)
    if min(len(side) for side in rows) < _LEAST_ROWS:
        raise InvalidInputError(
            f"a certificate needs at least {_LEAST_ROWS} held-out rows of either end, got "
            f"{[len(side) for side in rows]}; hold out more rows (--held-out of the command line)."
        )
    if bridge.forward.direction is Direction.BACKWARD:
        bridge, rows = bridge.reversed(), rows[::-1]
    if not isinstance(bridge.state_cost, (AbsorbedCost, NoneType)):
        raise UnsupportedError(
            "there is no certificate for a state cost that is a function: its lower bound needs the transition density "
            "of the reference with the cost. In one or two dimensions, compare with pde.solve_schroedinger(…, "
            "state_cost=…)."
        )
    if "forward" in plug_in_directions(bridge):
        raise UnsupportedError(
            "a certificate bounds the energy of the forward process, but this one ends in the data points: its energy "
            "grows with the number of steps, however good the fit; evaluate() scores the ends."
        )
    return bridge, rows


def dual_bound(potential: MixturePotential, x0: Tensor, x1: Tensor) -> Estimate:
    """Estimates ``D(g) = E_{p_T} g − E_{p_0} log c`` on rows of both ends not used for ``g``; on average ``≤ V*``."""
    return _at_ends(potential, x1, potential.log_normaliser, x0)


def _at_ends(above: Callable[[Tensor], Tensor], x: Tensor, below: Callable[[Tensor], Tensor], y: Tensor) -> Estimate:
    """Estimates ``E above(X) − E below(Y)`` on rows of both ends."""
    first, second = Estimate.of(above(x)), Estimate.of(below(y))
    error = math.hypot(first.standard_error, second.standard_error)
    return Estimate(first.value - second.value, error, min(first.samples, second.samples))


def certificate_or_reason(
    bridge: Bridge, x0: Rows, x1: Rows, *, seed: Seed, limits: EvaluationBudget | None = None
) -> Certificate | str:
    """Calls :func:`certify`, or returns the reason why there is none: few rows, or a reference that is not linear."""
    try:
        return certify(bridge, x0, x1, seed=seed, limits=limits)
    except SbridgeError as error:
        return str(error)


def certificate_json(found: Certificate | str) -> Json:
    """Returns the form kept in reports: :meth:`Certificate.to_json`, or ``{"reason": …}``."""
    return {"reason": found} if isinstance(found, str) else found.to_json()


def certificate_text(found: Certificate | str) -> str:
    """Formats the certificate for reports, which already have the notes."""
    return f"no certificate: {found}\n" if isinstance(found, str) else found.table() + "\n"


def _fitted(bridge: Bridge, x0: Tensor, x1: Tensor, solver: MixtureBridge, seed: int) -> MixturePotential:
    if span_fewer(x0) or span_fewer(x1):
        raise InvalidInputError(
            "the judging potential of a certificate is a Gaussian mixture, which needs ends with variance in every "
            "direction. The held-out rows of one end have none: columns are constant or depend on others, or there are "
            "too few rows; evaluate() scores the ends."
        )
    problem = BridgeProblem(Samples(x0), Samples(x1), bridge.reference)
    (potential,) = parts_of(solve(problem, solver, seed=seed).forward.control, MixturePotential)
    return potential


@torch.no_grad()
def _gap(measure: PathMeasure, potential: MixturePotential, x: Tensor, seed: int) -> tuple[Estimate, Estimate]:
    """Estimates energy and gap from one path per sample.

    ``∫u_g·dW``, with the control ``u_g`` of ``P^g``, is added to ``½∫|u|² dt + log c − g`` on each path. Its mean is
    zero, and the sum is ``½∫|u − u_g|² dt`` up to the time step.
    """
    judge = MixtureControl(potential)
    spent, gaps = [], []
    for block, rows in enumerate(x.split(ROW_BLOCK)):
        paths = measure.simulate(rows, seed=derive(seed, block))
        spent.append(energies(paths).double())
        noise = martingale(paths, judge).double()
        gaps.append(spent[-1] + noise + potential.log_normaliser(rows).double() - potential(paths.x[-1]).double())
    return Estimate.of(torch.cat(spent)), Estimate.of(torch.cat(gaps))


def _check_reference(bridge: Bridge, judge: MixturePotential | None) -> None:
    """Checks the reference: bounds hold under the bridge's own, for which ``c`` must be known in closed form."""
    own = bridge.reference
    if not isinstance(own, LinearProcess):
        raise UnsupportedError(
            f"a certificate needs a reference with transitions in closed form, which {type(own).__name__} does not "
            "have; evaluate() scores the ends, path_kl(bridge.forward, bridge.backward, …) measures the distance "
            "between the two directions."
        )
    if judge is None:
        return
    dim = bridge.forward.start.dim
    if judge.dim != dim:
        raise InvalidInputError(f"the judging potential has {judge.dim} columns, the bridge has {dim}.")
    if not _one_process(own, judge.process, dim):
        raise InvalidInputError(
            f"the judging potential was made for {judge.process}, the bridge for {own}: bounds hold only under the "
            "bridge's own reference; make the potential with process=bridge.reference."
        )


def _one_process(one: LinearProcess, other: LinearProcess, dim: int) -> bool:
    """Returns whether horizon, noise and transitions are equal."""
    if one.horizon != other.horizon:
        return False
    half, end = 0.5 * one.horizon, one.horizon
    for s, t in ((0.0, half), (half, end)):
        found, expected = (process.transition(s, t) for process in (one, other))
        pairs = [(one.scale(s).expanded(dim), other.scale(s).expanded(dim))]
        pairs += [(found.map.expanded(dim), expected.map.expanded(dim))]
        pairs += [(found.covariance.expanded(dim), expected.covariance.expanded(dim))]
        pairs += [(found.offset.expand(dim), expected.offset.expand(dim))]
        if not all(torch.allclose(a.double().cpu(), b.double().cpu(), rtol=1e-6, atol=1e-12) for a, b in pairs):
            return False
    return True


def _check_foreign(bridge: Bridge, forward: PathMeasure, judge: MixturePotential, x: Tensor) -> None:
    own = list(parts_of(bridge, MixturePotential))
    if not own:
        return
    control, times = MixtureControl(judge), (0.0, 0.5 * bridge.horizon)
    same = any(potential is judge for potential in own) or (
        forward.control is not None
        and all(torch.allclose(forward.control(t, x), control(t, x), rtol=1e-4, atol=1e-6) for t in times)
    )
    if same:
        raise InvalidInputError(
            "the judging potential is part of the bridge's own control: its gap would be zero however good or bad the "
            "bridge is. Fit another one on other rows: certify(…, potential=None) does so."
        )
