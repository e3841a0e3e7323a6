"""Control learning: the action along paths, weights of controlled paths, and the losses with their targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sbridge.controls.base import Control, Time
from sbridge.controls.divergence import rademacher
from sbridge.functionals import action, integrate
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.components import Components
from sbridge.identities.tools.monte_carlo import (
    noising,
    reversed_paths,
    width,
    with_exact_rows,
)
from sbridge.identities.tools.noising import noise_knots
from sbridge.identities.tools.tilts import Tilt
from sbridge.measures import Estimate, PathMeasure, Paths
from sbridge.objectives import (
    adjoint_targets,
    control_values,
    cross_entropy,
    lean_adjoint,
    log_variance,
    log_weight,
    mixed_targets,
    moment,
    relative_entropy,
    residual,
)
from sbridge.problems.costs import Costs
from sbridge.processes.coefficients import gauss_legendre
from sbridge.random import generator
from sbridge.simulation import Backprop
from sbridge.time import TimeGrid

action_identity = partial(identity, group="action")
_NUSKEN = "Nüsken & Richter 2021, arXiv:2005.05409"
_STEPS = 16
_BATCHES, _ROWS = 32, 512


@action_identity(
    statement="S[p, u, J] = E∫(½|u|² + V + σu·∇J) ds for the noising process and any J, u, V",
    equation="Premkumar 2023, eq. (3.21), Itô's formula",
    kind=Kind.EQUALITY,
    left="the action with all derivatives of J, along exact paths",
    right="moments of the noised data in closed form; u and J along independent paths",
)
def action_along_paths_has_its_closed_form(setting: Setting) -> Iterator[Outcome]:
    """Checks zero control and half of the control ``σᵀ∇J``, with a quadratic cost and the potential of a tilt as J."""
    tilt, unit = Tilt.of(setting), setting.dim * width(setting) ** 2 * setting.horizon
    centre, rows = Components.of(setting.data).mean(), min(setting.samples, 1000)
    fractions = noise_knots(setting, 48) / setting.horizon
    measure = PathMeasure(setting.process, None, setting.data, grid=TimeGrid(tuple(fractions.tolist())))

    def cost(t: Time, x: Tensor) -> Tensor:
        return 0.5 * (x - centre).square().sum(1) / unit

    def half(t: Time, x: Tensor) -> Tensor:
        return 0.5 * tilt.control(t, x)

    def rate(t: Time, x: Tensor) -> Tensor:  # ½|u|² + u·σᵀ∇J for u = ½σᵀ∇J
        return 0.625 * tilt.control(t, x).square().sum(1)

    rest = _mean_cost(setting, centre) / unit
    for note, control in (("u = 0", None), ("u = ½σᵀ∇J", half)):
        paths, other = (measure.sample(rows, seed=setting.seed_of("action", note, side)) for side in ("left", "right"))
        probes = rademacher(paths.x[0], 1, generator(setting.seed_of("probes"))) if setting.dim > 2 else None
        left, added = action(paths, control, tilt.log_potential, cost, probes=probes), Estimate(0.0, 0.0, rows)
        if control is not None:
            added = integrate(other, rate).estimate
        right = Estimate(rest + added.value, added.standard_error, rows)
        yield Outcome.of(left.estimate, right, left.allowance, note)


def _mean_cost(setting: Setting, centre: Tensor) -> float:
    """Computes ``∫ ½E|X_s − c|² ds`` by Gauss–Legendre quadrature."""
    data, total = Components.of(setting.data), 0.0
    for place, weight in zip(*(one.tolist() for one in gauss_legendre(3)), strict=True):
        law = data.moved(setting.process.transition(0.0, setting.horizon * place))
        square = setting.dim * law.width**2 + float((law.mean() - centre).square().sum())
        total += 0.5 * setting.horizon * weight * square
    return total


@action_identity(
    statement="E_{P^v} e^{log α} = E φ(0, X_0) for paths of any control v of the chain, exactly",
    equation=f"{_NUSKEN}; Premkumar 2023, eq. (2.24), (3.25)",
    kind=Kind.EQUALITY,
    left="log α of controlled paths, over φ(0, ·) at their starts",
    right="1",
)
def path_weights_have_the_mean_of_the_potential(setting: Setting) -> Iterator[Outcome]:
    """Checks zero control and a linear control, for the terminal cost ``−g`` of a tilt."""
    tilt, costs = Tilt.of(setting), _tilting(setting)
    for note, control in (("no control", None), ("linear control", _linear(setting, 0.5))):
        paths = _chain(setting, control).sample(setting.samples, seed=setting.seed_of("weights", note))
        found = Estimate.of((log_weight(paths, costs) - tilt.log_potential(0.0, paths.x[0])).exp())
        yield Outcome(found.value, 1.0, found.standard_error, note=note)


@action_identity(
    statement="the losses of control learning have one gradient: ∇KL(P^u ‖ P*) = ½∇Var Ỹ = ½∇E(Ỹ − EỸ)²",
    equation=_NUSKEN,
    kind=Kind.EQUALITY,
    left="derivative of the log variance and of the moment loss in the strength of a control, paths held fixed",
    right="derivative of the relative entropy through simulated paths, independent draws",
)
def control_losses_have_one_gradient(setting: Setting) -> Iterator[Outcome]:
    """Differentiates the three losses of a linear control for the terminal cost of a tilt; exact for a chain."""
    costs = _tilting(setting)

    def entropy(theta: Tensor, seed: int) -> Tensor:
        measure = _chain(setting, _linear(setting, theta))
        start = measure.starts(_ROWS, seed=seed)
        return relative_entropy(measure.simulate(start, seed=seed, gradient=Backprop()), costs)

    def half_variance(theta: Tensor, seed: int) -> Tensor:
        paths = _chain(setting, _linear(setting, theta.detach())).sample(_ROWS, seed=seed)
        return 0.5 * log_variance(paths, costs, control_values(_linear(setting, theta), paths))

    def half_moment(theta: Tensor, seed: int) -> Tensor:
        paths = _chain(setting, _linear(setting, theta.detach())).sample(_ROWS, seed=seed)
        u = control_values(_linear(setting, theta), paths)
        return 0.5 * moment(paths, costs, u, -residual(paths, costs, u).mean().detach())

    right = _derivative(setting, entropy, "relative entropy")
    for note, loss in (("log variance", half_variance), ("moment", half_moment)):
        yield Outcome.of(_derivative(setting, loss, note), right, note=note)


@action_identity(
    statement="the cross entropy and its gradient do not depend on the control of the paths",
    equation=_NUSKEN,
    kind=Kind.EQUALITY,
    left="derivative of the cross entropy in the strength of a control, weighted paths without control",
    right="the same with paths of the optimal control, independent draws",
)
def cross_entropy_is_free_of_the_sampling(setting: Setting) -> Outcome:
    """Differentiates the cross entropy of a linear control for the terminal cost of a tilt."""
    costs, tilt = _tilting(setting), Tilt.of(setting)

    def loss(sampling: Control | None, theta: Tensor, seed: int) -> Tensor:
        paths = _chain(setting, sampling).sample(4 * _ROWS, seed=seed)
        return cross_entropy(paths, costs, control_values(_linear(setting, theta), paths))

    left, right = (
        _derivative(setting, partial(loss, one), f"cross entropy, {note}")
        for note, one in (("reference", None), ("tilt", tilt.control))
    )
    return Outcome.of(left, right)


@action_identity(
    statement="E*[target | x] = u* = g∇log ρ for the adjoint state, and for its mixture with the noise",
    equation="Domingo-Enrich et al. 2024, arXiv:2409.08861; Premkumar 2023, eq. (3.35)",
    kind=Kind.EQUALITY,
    left="∫ E[target · u*] ds along time-reversed noising paths up to T/4; adjoint states from ∇log ρ at s_min alone",
    right="∫ E|u*|² ds along the same paths, with the control of the chain from Tweedie's formula",
)
def adjoint_states_average_to_the_score(setting: Setting) -> Iterator[Outcome]:
    """Checks the regression targets of adjoint matching in the problem whose control is the score; exact for a chain.

    Further than ``T/4`` from the end, adjoint states of a process that forgets its start are all noise.
    """
    setting = with_exact_rows(setting)
    exact, s_min, process = setting.exact, setting.s_min, setting.process
    costs = Costs(terminal=lambda x: -exact.log_density(s_min, x))
    paths = reversed_paths(noising(setting, 40).sample(min(setting.samples, 2000), seed=setting.seed_of("adjoint")))
    chain, best = paths.chain, list[Tensor]()
    for k, (t, x) in enumerate(zip(chain.step_times, paths.x[:-1], strict=True)):
        step = process.transition(float(chain.visited[k + 1]), t)
        mean = step.map.inverse()(x - step.offset + step.covariance(exact(t, x)))  # of x_{k+1}
        best.append(chain.shift(k, x, mean) / chain.root_durations[k])
    u, widths = torch.stack(best), paths.t.diff().abs().sqrt()[:, None, None]
    paths = Paths(paths.x, paths.noise - widths * u, u, chain)
    spans = (paths.t.diff().abs() * (paths.t[:-1] <= 0.25 * setting.horizon))[:, None]
    right = (spans * u.square().sum(2)).sum(0)
    rows = torch.full((paths.x.shape[1],), 1.0 / paths.x.shape[1], dtype=torch.float64)
    for note, targets in (
        ("adjoint state", adjoint_targets(chain, lean_adjoint(paths, costs))),
        ("mixed with noise", mixed_targets(paths, costs, rows)),
    ):
        yield Outcome.paired((spans * (targets * u).sum(2)).sum(0) - right, right, note=note)


def _tilting(setting: Setting) -> Costs:
    """Returns the terminal cost ``−g`` of a tilt, differentiable."""
    tilt = Tilt.of(setting)
    return Costs(terminal=lambda x: -tilt.log_potential(setting.horizon, x.double()))


def _linear(setting: Setting, strength: float | Tensor) -> Control:
    """Returns ``u = −strength · (x − c)/(w √T)`` with centre and width of the data at ``T``."""
    law = Components.of(setting.data).moved(setting.process.transition(0.0, setting.horizon))
    centre, scale = law.mean(), law.width * math.sqrt(setting.horizon)
    return lambda t, x: strength * (centre - x) / scale


def _chain(setting: Setting, control: Control | None) -> PathMeasure:
    return PathMeasure(setting.process, control, setting.data, grid=TimeGrid.uniform(_STEPS))


def _derivative(setting: Setting, loss: Callable[[Tensor, int], Tensor], stream: str) -> Estimate:
    """Estimates ``d loss/dθ`` at ``θ = ½`` from independent batches."""
    found = []
    for part in range(_BATCHES):
        with torch.enable_grad():
            theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(loss(theta, setting.seed_of("batch", stream, part)), theta)
        found.append(slope)
    return Estimate.of(torch.stack(found))
