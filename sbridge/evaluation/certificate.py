"""How far from optimal a bridge is, with bounds that need no exact solution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from sbridge.display import value_and_error
from sbridge.errors import FileFormatError, InvalidInputError, SbridgeError, UnsupportedError
from sbridge.evaluation.evaluate import Rows, checked_rows, evaluate, parts_of, plug_in_directions
from sbridge.evaluation.judge import Limits
from sbridge.evaluation.report import COPY, MODEL, PERFECT, Quantity, Report
from sbridge.evaluation.rows import shuffled
from sbridge.evaluation.wording import COST, GENERAL_NOTES
from sbridge.exact import MixtureControl, MixturePotential
from sbridge.fitting import solve
from sbridge.laws import Samples
from sbridge.measures import Direction, Estimate, PathMeasure, energies, martingale
from sbridge.metrics import EnergyDistance
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.random import ROW_BLOCK, Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import span_fewer
from sbridge.solvers.mixture import MixtureBridge
from sbridge.storage.registry import Json

SCHEMA = "sbridge.certificate/1"
_PROBE_ROWS, _LEAST_ROWS = 16, 64
_BOUNDS = ("lower_bound", "energy", "gap")
_BAND = 2.0  # standard errors
_SHARE, _LEAST_ALLOWANCE = 0.1, 0.05  # of the lower bound; nats
_END_SHARE = 0.05


@dataclass(frozen=True)
class EndError:
    """How far the simulated rows of one end are from the data, by the energy distance.

    Args:
        value, standard_error: of the simulated rows.
        floor: of perfect samples.
        excess_error: standard error of ``value − floor``.
        unmoved: of the rows that the process starts from.
    """

    value: float
    standard_error: float
    floor: float
    excess_error: float
    unmoved: float


@dataclass(frozen=True)
class Verdict:
    """``pass``, ``fail`` or ``inconclusive``, and a sentence that says why."""

    word: str
    reason: str

    def __str__(self) -> str:
        """Both."""
        return f"{self.word.capitalize()}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Certificate:
    """Bounds that hold for every bridge and every judging potential ``g``; none means much without the others.

    Attributes:
        lower_bound: ``D(g) = E_{p_T} g − E_{p_0} log c ≤ V*``, the least energy of any bridge between the ends.
        energy: ``½ E∫|u|² dt`` of the bridge. No upper bound on ``V*``, unless its end law is right.
        gap: ``½E∫|u|² dt + E_{p_0} log c − E_{P^u_T} g = KL(P^u ‖ P^g)``: bounds the divergence of the forward process
            from the best one with its *own* ends.
        report: end-law errors of the simulated processes beside the error of perfect samples, and the Jeffreys
            divergence of the two directions.
        judge: ``g``; ``None`` for a certificate that was read from a report.
        components: number of Gaussian components of the judge.
    """

    lower_bound: Estimate
    energy: Estimate
    gap: Estimate
    report: Report
    judge: MixturePotential | None
    components: int

    @property
    def jeffreys(self) -> Quantity | None:
        """Divergence of the two directions from each other; ``None`` where one of them ends in rows of the data."""
        return next((quantity for quantity in self.report.path if quantity.name == "Jeffreys divergence"), None)

    def end_error(self, direction: str) -> EndError:
        """That of the rows at the end of the ``forward`` or ``backward`` process.

        Raises:
            InvalidInputError: if the report could not score them.
        """
        (column,) = (column.name for column in self.report.columns if column.name != COST)
        own, perfect, unmoved = (self.report.score(direction, name, column) for name in (MODEL, PERFECT, COPY))
        if own.value is None or own.standard_error is None or perfect.value is None or unmoved.value is None:
            raise InvalidInputError(f"no end-law error: {own.reason or perfect.reason or unmoved.reason}")
        spread = math.hypot(own.standard_error, perfect.standard_error or 0.0)
        return EndError(own.value, own.standard_error, perfect.value, spread, unmoved.value)

    @property
    def verdict(self) -> Verdict:
        """What the numbers together say, within two standard errors.

        Fail: an end is off by more than 5 % of what unmoved rows are off; the energy lies below the lower bound, which
        no process with the right ends can do; or the two directions differ by more than the allowance. Pass: nothing of
        that, enough rows to see it, and a gap within the allowance: 10 % of the lower bound, or .05 nats if that is
        more. Else inconclusive: a large gap is the fault of the bridge or of the judge, and nothing tells which.
        """
        return _verdict(self)

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and finite numbers only, without the judging potential."""
        bounds = {name: dataclasses.asdict(getattr(self, name)) for name in _BOUNDS}
        verdict = dataclasses.asdict(self.verdict)
        head = {"schema": SCHEMA, "components": self.components, "verdict": verdict}
        return {**head, **bounds, "report": self.report.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Certificate:
        """The certificate that :meth:`to_json` wrote, without its judge.

        Raises:
            FileFormatError: if it is none, or of another version.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise FileFormatError(f"this is no certificate: a mapping with schema {SCHEMA!r} is needed.")
        try:
            bounds = {name: Estimate(**document[name]) for name in _BOUNDS}
            report, components = Report.from_json(document["report"]), int(document.get("components", 0))
            return cls(**bounds, report=report, judge=None, components=components)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"the certificate is damaged: {error!r}.") from error

    def text(self) -> str:
        """All of it, for people."""
        notes = self.report.notes[GENERAL_NOTES:]
        lines = (wrap(note, 98, initial_indent="  * ", subsequent_indent="    ") for note in notes)
        return "\n".join([self.table(), *(line for note in lines for line in note)]) + "\n"

    def table(self) -> str:
        """The verdict and the numbers, without notes on the rows."""
        judged = f" (judged by {self.components} Gaussian component(s))" if self.components else ""
        lines = [f"certificate, in nats{judged}"]
        lines += wrap(str(self.verdict), 98, initial_indent="  ", subsequent_indent="  ")
        rows = [("lower bound D(g) on the least energy", str(self.lower_bound))]
        rows += [("energy of the forward process", str(self.energy))]
        rows += [("suboptimality gap for its own end law", str(self.gap))]
        divergence = self.jeffreys
        if divergence is not None:
            told = f"none: {divergence.reason}"
            if divergence.value is not None and divergence.standard_error is not None:
                told = value_and_error(divergence.value, divergence.standard_error)
            rows.append(("Jeffreys divergence of the directions", told))
        for direction in ("forward", "backward"):
            found = self.end_error(direction)
            told = f"{value_and_error(found.value, found.standard_error)}, floor {found.floor:.3g}"
            rows.append((f"end law, {direction:<8} (energy distance)", told))
        return "\n".join([*lines, *(f"  {name:<41}{told}" for name, told in rows)])


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
            return Verdict("fail", f"the {direction} process ends elsewhere than the data ({distance}).")
        if _BAND * end.excess_error > 0.5 * whole > 0.0:
            doubts.append(f"the rows are too few to tell a right end of the {direction} process from a wrong one")
    if found.energy.value + _BAND * found.energy.standard_error < _below(found.lower_bound):
        spent = f"{value_and_error(found.energy.value, found.energy.standard_error)} nats"
        return Verdict("fail", f"the energy, {spent}, is below what a process with the right ends must spend.")
    if divergence is not None and divergence.value is not None and divergence.standard_error is not None:
        told = value_and_error(divergence.value, divergence.standard_error)
        if abs(divergence.value) - _BAND * divergence.standard_error > allowed:
            return Verdict("fail", f"the two directions are not one process: they differ by {told} nats.")
    highest = found.gap.value + _BAND * found.gap.standard_error
    if highest > allowed:
        gap = value_and_error(found.gap.value, found.gap.standard_error)
        doubts.append(
            f"the gap, {gap} nats, is not shown to be within the allowed {allowed:.2g}: the bridge spends too much, or "
            "the judge is too weak to show that it does not; more held-out rows make a better judge"
        )
    if doubts:
        return Verdict("inconclusive", "; ".join(doubts) + ".")
    return Verdict(
        "pass",
        "within error both processes end in the distribution of the data, and the forward one is at most "
        f"{highest:.2g} nats from the best with its own ends ({allowed:.2g} are allowed).",
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
    limits: Limits | None = None,
) -> Certificate:
    """Bounds on the suboptimality of ``bridge`` from held-out rows, by a judging potential that it never saw.

    For any ``g`` with ``c(x) = E_R[e^{g(X_T)} | X_0 = x]`` in closed form and any control (Korotin et al. 2024,
    arXiv:2310.01174, for the dual; Girsanov's theorem for the gap; both directions of the verification
    argument of stochastic control)::

        D(g) = E_{p_T} g − E_{p_0} log c = V* − KL(P* ‖ P^g)        gap = KL(P^u ‖ P^g) ≥ 0

    Of a reversed bridge the forward process, in time, is judged all the same. Both processes are simulated on their
    grids, even if their ends are known in closed form, since it is the control that is judged. Bounds hold exactly for
    chains of exact transitions.

    Args:
        bridge: the solution; its reference must be linear.
        x0: held-out rows of the end at which ``bridge.forward`` starts; without ``potential`` one half of them fits it
            and the other half judges.
        x1: held-out rows of the other end, likewise.
        seed: of every draw.
        potential: the judge ``g``, in units of the data; fitted by ``solver`` if there is none.
        solver: fits the judge.
        limits: how much to compute; ``rows`` bounds the paths of energy and gap, too.

    Raises:
        InvalidInputError: if the potential is one that the bridge's own control is made of (its gap is zero whatever
            the control is worth), or has another reference than the bridge, for a solver that fits no potential, for
            rows that do not fit, or fewer than 64 a side.
        UnsupportedError: if the reference is not linear, or the forward process ends in rows of the data.
    """
    seed, limits = as_seed(seed), limits or Limits()
    if not isinstance(solver, MixtureBridge):
        raise InvalidInputError(f"the judge is fitted by a MixtureBridge, got a {type(solver).__name__}.")
    _check_reference(bridge, potential)
    rows = checked_rows(bridge, {"x0": x0, "x1": x1})
    if min(len(side) for side in rows) < _LEAST_ROWS:
        raise InvalidInputError(
            f"a certificate needs at least {_LEAST_ROWS} held-out rows a side, got {[len(side) for side in rows]}; "
            "keep more of them from the fit (--held-out of the command line)."
        )
    if bridge.forward.direction is Direction.BACKWARD:
        bridge, rows = bridge.reversed(), rows[::-1]
    if "forward" in plug_in_directions(bridge):
        raise UnsupportedError(
            "a certificate bounds the energy of the forward process, and this one ends in rows of the data, each a "
            "point: its energy grows with the number of steps, however good the fit; evaluate() scores the ends."
        )
    near, far = (shuffled(side, len(side), derive(seed, i)) for i, side in enumerate(rows))
    forward, backward = (replace(measure, end_kernel=None) for measure in (bridge.forward, bridge.backward))
    if potential is None:
        (fit_near, near), (fit_far, far) = (side.tensor_split(2) for side in (near, far))
        potential = _fitted(bridge, fit_near, fit_far, solver, derive(seed, "judge"))
    else:
        _check_foreign(bridge, forward, potential, near[:_PROBE_ROWS])
    bound = dual_bound(potential, near, far)
    spent, gap = _gap(forward, potential, near[: limits.rows], derive(seed, "paths"))
    report = evaluate(
        Bridge(forward, backward), near, far, seed=seed, metrics=(EnergyDistance(),), baselines=(), limits=limits
    )
    return Certificate(bound, spent, gap, report, potential, potential.components)


def dual_bound(potential: MixturePotential, x0: Tensor, x1: Tensor) -> Estimate:
    """``D(g) = E_{p_T} g − E_{p_0} log c`` on rows of the two ends that had no part in ``g``; on average ``≤ V*``."""
    above, below = Estimate.of(potential(x1)), Estimate.of(potential.log_normaliser(x0))
    error = math.hypot(above.standard_error, below.standard_error)
    return Estimate(above.value - below.value, error, min(above.samples, below.samples))


def certificate_or_reason(
    bridge: Bridge, x0: Rows, x1: Rows, *, seed: Seed, limits: Limits | None = None
) -> Certificate | str:
    """:func:`certify`, or the sentence that says why there is none: few rows, or a reference that is not linear."""
    try:
        return certify(bridge, x0, x1, seed=seed, limits=limits)
    except SbridgeError as error:
        return str(error)


def certificate_json(found: Certificate | str) -> Json:
    """As reports keep it: :meth:`Certificate.to_json`, or ``{"reason": …}``."""
    return {"reason": found} if isinstance(found, str) else found.to_json()


def certificate_text(found: Certificate | str) -> str:
    """As reports show it, which have the notes already."""
    return f"no certificate: {found}\n" if isinstance(found, str) else found.table() + "\n"


def _fitted(bridge: Bridge, x0: Tensor, x1: Tensor, solver: MixtureBridge, seed: int) -> MixturePotential:
    if span_fewer(x0) or span_fewer(x1):
        raise InvalidInputError(
            "the judge of a certificate is a mixture of Gaussians, which needs ends that spread in every direction. "
            "Held-out rows of one do not: columns are constant or follow from others, or rows are too few for them; "
            "evaluate() scores the ends."
        )
    problem = BridgeProblem(Samples(x0), Samples(x1), bridge.reference)
    (potential,) = parts_of(solve(problem, solver, seed=seed).forward.control, MixturePotential)
    return potential


@torch.no_grad()
def _gap(measure: PathMeasure, potential: MixturePotential, x: Tensor, seed: int) -> tuple[Estimate, Estimate]:
    """Energy and gap on one path from each row.

    To each path's ``½∫|u|² dt + log c − g`` is added ``∫u_g·dW``, ``u_g`` the control of ``P^g``: its mean is zero, and
    what is averaged is then ``½∫|u − u_g|² dt`` up to the steps.
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
    """Bounds hold under the bridge's own reference, for which ``c`` must be known in closed form."""
    own = bridge.reference
    if not isinstance(own, LinearProcess):
        raise UnsupportedError(
            f"a certificate needs a reference with transitions in closed form, which {type(own).__name__} has not; "
            "evaluate() scores the ends, path_kl(bridge.forward, bridge.backward, …) how far the two directions "
            "are apart."
        )
    if judge is None:
        return
    dim = bridge.forward.start.dim
    if judge.dim != dim:
        raise InvalidInputError(f"the judging potential has {judge.dim} columns, the bridge {dim}.")
    if not _one_process(own, judge.process, dim):
        raise InvalidInputError(
            f"the judging potential was made for {judge.process}, the bridge for {own}: bounds hold under the bridge's "
            "own reference alone; make the potential with process=bridge.reference."
        )


def _one_process(one: LinearProcess, other: LinearProcess, dim: int) -> bool:
    """Whether horizon, noise and transitions are the same."""
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
            "the judging potential is the one that the bridge's own control is made of: its gap would be zero whatever "
            "it is worth. Fit another one on other rows: certify(…, potential=None) does."
        )
