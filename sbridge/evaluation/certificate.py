"""How far from optimal a bridge is, with bounds that need no exact solution."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, SbridgeError, UnsupportedError
from sbridge.evaluation.evaluate import Rows, checked_rows, evaluate, parts_of
from sbridge.evaluation.judge import Limits
from sbridge.evaluation.report import MODEL, PERFECT, Quantity, Report
from sbridge.evaluation.rows import shuffled
from sbridge.evaluation.wording import COST, GENERAL_NOTES
from sbridge.fitting import solve
from sbridge.laws import Samples
from sbridge.measures import Direction, Estimate, PathMeasure, energies, martingale
from sbridge.metrics import EnergyDistance
from sbridge.potentials import MixtureControl, MixturePotential
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.random import ROW_BLOCK, Seed, as_seed, derive
from sbridge.registry import Json
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import span_fewer
from sbridge.solvers.mixture import MixtureBridge

SCHEMA = "sbridge.certificate/1"
_PROBE_ROWS, _LEAST_ROWS = 16, 64


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
        judge: ``g``.
    """

    lower_bound: Estimate
    energy: Estimate
    gap: Estimate
    report: Report
    judge: MixturePotential

    @property
    def jeffreys(self) -> Quantity:
        """Divergence of the forward and the backward process from each other."""
        return self.report.quantity("Jeffreys divergence")

    def end_error(self, direction: str) -> tuple[float, float, float]:
        """Energy distance of the simulated end rows of ``forward`` or ``backward``, its standard error, its floor.

        Raises:
            InvalidInputError: if the report could not score them.
        """
        (column,) = (column.name for column in self.report.columns if column.name != COST)
        own, perfect = (self.report.score(direction, name, column) for name in (MODEL, PERFECT))
        if own.value is None or own.standard_error is None or perfect.value is None:
            raise InvalidInputError(f"no end-law error: {own.reason or perfect.reason}")
        return own.value, own.standard_error, perfect.value

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and finite numbers only, without the judging potential."""
        bounds = {name: dataclasses.asdict(getattr(self, name)) for name in ("lower_bound", "energy", "gap")}
        return {"schema": SCHEMA, **bounds, "report": self.report.to_json()}

    def text(self) -> str:
        """All of it, for people."""
        lines = [
            f"certificate, in nats (judged by {self.judge.components} Gaussian component(s))",
            f"  lower bound D(g) on the least energy     {self.lower_bound}",
            f"  energy of the forward process            {self.energy}",
            f"  suboptimality gap for its own end law    {self.gap}",
        ]
        divergence = self.jeffreys
        if divergence.value is None or divergence.standard_error is None:
            lines.append(f"  Jeffreys divergence of the directions    none: {divergence.reason}")
        else:
            told = Estimate(divergence.value, divergence.standard_error, divergence.samples or 0)
            lines.append(f"  Jeffreys divergence of the directions    {told}")
        for direction in ("forward", "backward"):
            value, error, floor = self.end_error(direction)
            heading = f"  end law, {direction:<8} (energy distance)"
            lines.append(f"{heading:<43}{value:.4g} ± {error:.2g}, floor {floor:.4g}")
        for note in self.report.notes[GENERAL_NOTES:]:
            lines += wrap(note, 98, initial_indent="  * ", subsequent_indent="    ")
        return "\n".join(lines) + "\n"


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
        UnsupportedError: if the reference is not linear.
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
    return Certificate(bound, spent, gap, report, potential)


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
    """As reports show it."""
    return f"no certificate: {found}\n" if isinstance(found, str) else found.text()


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
