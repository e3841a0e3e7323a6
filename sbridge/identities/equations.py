"""Evolution equations of densities, expectations and value functions: closed forms, quadrature, grids and paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sbridge.functionals import feynman_kac
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.killing import Well
from sbridge.identities.settings import Setting
from sbridge.identities.tools.derivatives import Derivatives, RowFunction, divergence, relative_size
from sbridge.identities.tools.line import line_grid, mean_and_std
from sbridge.identities.tools.noising import POINTS, is_scalar, noising_states
from sbridge.identities.tools.tilts import Tilt
from sbridge.measures import PathMeasure
from sbridge.pde import Grid, backward_kolmogorov, fokker_planck, hamilton_jacobi_bellman, solve_schroedinger
from sbridge.processes import BrownianMotion, LinearProcess, ReversedDrift, Transition
from sbridge.processes.base import Time
from sbridge.time import TimeGrid

equation_identity = partial(identity, group="equations")
_SMALL = 1e-6
_TIMES = (0.1, 0.5, 0.9)


@equation_identity(
    statement="∂_t ρ + ∇·(bρ) − ½∇·(σσᵀ∇ρ) = 0 for the noised data",
    equation="Premkumar 2023, eq. (2.6)",
    kind=Kind.RESIDUAL,
    left="largest relative residual at noised points, by differentiating the density of the mixture",
    applies=Setting.has_density,
)
def fokker_planck_residual(setting: Setting) -> Iterator[Outcome]:
    """Computes the residual at three times."""
    for note, t, x in _points(setting):
        seen = Derivatives.of(_one_over(setting.exact.log_density), t, x)
        spread, flow = seen.diffusion_term(setting.process, t), seen.along(_drift(setting, t, x))
        growth = _growth(setting, t, x)
        yield _residual(note, seen.rate + flow + growth - spread, seen.rate, flow, growth, spread)


@equation_identity(
    statement="grid solutions of the Fokker–Planck equation converge to the noised density with order 2",
    equation="Premkumar 2023, eq. (2.6)",
    kind=Kind.ORDER,
    left="order of the total variation when cells and steps are halved; finite volumes",
    right="2",
    applies=Setting.has_density_on_line,
)
def fokker_planck_on_a_grid_converges(setting: Setting) -> Outcome:
    """Measures the order at the horizon, from the density of the data on."""
    exact = setting.exact

    def error(grid: Grid, steps: int) -> float:
        start, end = (grid.field(exact.log_density(t, grid.points).exp()) for t in (0.0, setting.horizon))
        found = fokker_planck(setting.process, grid, start, TimeGrid.uniform(steps)).density[-1]
        return float(0.5 * np.abs(found - end).sum() * grid.volume)

    return _order(setting, error)


@equation_identity(
    statement="grid solutions of the Hamilton–Jacobi–Bellman equation converge to J = −log φ with order 2",
    equation="Premkumar 2023, eq. (3.24)–(3.25)",
    kind=Kind.ORDER,
    left="order of the root mean square error when cells and steps are halved; finite volumes of φ, in logarithms",
    right="2",
    applies=Setting.has_density_on_line,
)
def hamilton_jacobi_bellman_on_a_grid_converges(setting: Setting) -> Outcome:
    """Measures the order for a terminal cost ``J_T = −log φ_T`` that is a mixture."""
    tilt = Tilt.of(setting)

    def error(grid: Grid, steps: int) -> float:
        found = hamilton_jacobi_bellman(
            setting.process, grid, lambda x: -tilt.log_potential(setting.horizon, x.double()), TimeGrid.uniform(steps)
        )[0]
        weight = grid.field(setting.exact.log_density(setting.horizon / 3.0, grid.points).exp()) * grid.volume
        return math.sqrt(float((weight * np.square(found + grid.field(tilt.log_potential(0.0, grid.points)))).sum()))

    return _order(setting, error)


def _order(setting: Setting, error: Callable[[Grid, int], float]) -> Outcome:
    """The order of an error between two grids, of 2.5 and 5 cells in the smallest standard deviation."""
    coarse = line_grid(setting, 2.5)
    fine = Grid(coarse.low, coarse.high, (2 * coarse.cells[0],))
    first, last = error(coarse, 40), error(fine, 80)
    note = f"{coarse.cells[0]} and {fine.cells[0]} cells, errors {first:.1e} and {last:.1e}"
    return Outcome(math.log2(first / last), 2.0, allowance=0.25, note=note)


@equation_identity(
    statement="∂_t φ + b·∇φ + ½σσᵀ:∇²φ = 0 for φ = E[ψ(X_T) | X_t = x]",
    equation="Premkumar 2023, eq. (2.24)–(2.27)",
    kind=Kind.RESIDUAL,
    left="largest relative residual at noised points, by differentiating a Gaussian integral",
    applies=Setting.has_density,
)
def backward_kolmogorov_residual(setting: Setting) -> Iterator[Outcome]:
    """Computes the residual at three times."""
    tilt = Tilt.of(setting)
    for note, t, x in _points(setting):
        seen = Derivatives.of(_one_over(tilt.log_potential), t, x)
        flow, spread = seen.along(_drift(setting, t, x)), seen.diffusion_term(setting.process, t)
        yield _residual(note, seen.rate + flow + spread, seen.rate, flow, spread)


@equation_identity(
    statement="∫ p(y, t | z, r) p(z, r | x, s) dz = p(y, t | x, s)",
    equation="Premkumar 2023, eq. (2.20); Chapman–Kolmogorov",
    kind=Kind.RESIDUAL,
    left="largest difference of the logarithms; trapezoidal rule over z, one coordinate at a time",
    applies=is_scalar,
)
def chapman_kolmogorov(setting: Setting) -> Iterator[Outcome]:
    """Compares the transition from ``T/5`` to ``4T/5`` with its composition through ``T/2``."""
    s, r, t = (share * setting.horizon for share in (0.2, 0.5, 0.8))
    x, _, y = (states[:POINTS] for states in noising_states(setting, (s, r, t), "chapman")[1:])
    process = setting.process
    first, second = process.transition(s, r), process.transition(r, t)
    nodes = torch.linspace(-9.0, 9.0, 721, dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(setting.dim):
        place = first.mean(x)[:, i : i + 1] + first.root(nodes)
        joint = _coordinate_density(first, i, x[:, i : i + 1], place)
        joint = joint + _coordinate_density(second, i, place, y[:, i : i + 1])
        width = float(first.root.values) * float(nodes[1] - nodes[0])
        total = total + torch.logsumexp(joint, 1) + math.log(width)
    yield _residual("T/5 → T/2 → 4T/5", total - process.log_transition(s, x, t, y))


def _coordinate_density(law: Transition, i: int, x: Tensor, y: Tensor) -> Tensor:
    """Computes ``log p(y_i | x_i)``; map and covariance are multiples of the identity, the offset may be a vector."""
    offset = law.offset if law.offset.numel() == 1 else law.offset[i]
    apart = (y - law.map.values * x - offset) / law.root.values
    return -0.5 * apart.square() - law.root.values.log() - 0.5 * math.log(2.0 * math.pi)


@equation_identity(
    statement="grid solutions of the backward equation with killing rate V converge to φ = E e^{−∫V dt} with order 2",
    equation="Premkumar 2023, eq. (2.28)–(2.30)",
    kind=Kind.ORDER,
    left="order of the root mean square error when cells and steps are halved; finite volumes in each coordinate",
    right="2",
)
def killed_grid_solution_converges(setting: Setting) -> Outcome:
    """Measures the order for a quadratic well, whose φ is a product over coordinates."""
    well = Well.of(setting)
    reach = 8.0 * well.sigma * math.sqrt(well.horizon)
    errors = []
    for cells in (60, 120):
        grid = Grid.of(-reach, reach, cells)
        found = backward_kolmogorov(
            BrownianMotion(well.sigma, well.horizon),
            grid,
            np.ones(grid.shape),
            TimeGrid.uniform(cells // 3),
            state_cost=lambda t, x: 0.5 * well.k**2 * x.square().sum(1),
        )[0]
        alone = Well(well.sigma, well.k, torch.zeros(1, dtype=torch.float64), well.horizon, well.pull)
        gap = (found - alone.log_mass(grid.points).exp().numpy())[
            cells // 4 : -(cells // 4)
        ]  # the boundary has no effect there
        errors.append(math.sqrt(np.square(gap).mean()))
    return Outcome(math.log2(errors[0] / errors[1]), 2.0, allowance=0.2, note="60 and 120 cells")


@equation_identity(
    statement="E[e^{−∫V dt} ψ(X_T) | X_0] solves the backward equation with killing rate V",
    equation="Premkumar 2023, eq. (2.28)–(2.30); Kac 1949",
    kind=Kind.EQUALITY,
    left="weights along exact paths of the noising process, trapezoidal rule in time",
    right="finite volumes on a grid, extrapolated to cell and step 0",
    applies=Setting.has_density_on_line,
)
def feynman_kac_is_the_grid_solution(setting: Setting) -> Outcome:
    """Compares both for a rate of both signs and an end function of both signs."""
    centre, width = mean_and_std(setting, 0.0)
    wide, far = mean_and_std(setting, 1.0)[1], float(setting.process.transition(0.0, setting.horizon).map.values)

    def rate(t: Time, x: Tensor) -> Tensor:
        return (0.3 + (x[:, 0] - centre).mul(1.5 / width).sin()) / setting.horizon

    def end(x: Tensor) -> Tensor:
        return 0.5 + (x[:, 0] / wide).sin()

    paths = PathMeasure(setting.process, None, setting.data, grid=setting.grid(4)).sample(
        2 * setting.samples, seed=setting.seed_of("feynman–kac")
    )
    weights = feynman_kac(paths, end, rate)
    start = paths.x[0].double()
    values = []
    for cells in (120, 240, 480):
        reach = 8.0 * max(width, wide, width * abs(far))
        grid = Grid.of(centre - reach, centre + reach, cells)
        ends = grid.field(end(grid.points))
        steps = TimeGrid.uniform(cells // 4)
        found = backward_kolmogorov(setting.process, grid, ends, steps, state_cost=rate)[0]
        values.append(torch.from_numpy(grid.spline(found)(start.numpy())))
    coarse, fine = ((4.0 * b - a) / 3.0 for a, b in pairwise(values))
    allowance = weights.allowance + abs(float((fine - coarse).mean()))
    return Outcome.paired(weights.values - fine, fine, allowance)


@equation_identity(
    statement="the kernel of killed diffusion solves ∂_t G = −∇·(bG) + ½σ²ΔG − VG in y, and the adjoint equation in x",
    equation="Premkumar 2023, eq. (2.33); Mehler 1866",
    kind=Kind.RESIDUAL,
    left="largest relative residual, by differentiating the kernel of a quadratic well",
)
def killed_kernel_equations(setting: Setting) -> Iterator[Outcome]:
    """Checks the forward equation in the end and the backward equation in the start."""
    well = Well.of(setting)
    brown = well.process
    x, y = (states[:POINTS] - well.centre for states in noising_states(setting, (0.5 * setting.horizon,), "killed"))
    y = x + 0.5 * (y - x)
    for note, moving, still in (("forward, in y", y, x), ("backward, in x", x, y)):
        t = torch.full((len(x),), 0.4 * setting.horizon, dtype=torch.float64)

        def log_kernel(t: Tensor, place: Tensor, still: Tensor = still) -> Tensor:
            return log_mehler(well, t, place, still)

        seen = Derivatives.of(_one_over(log_kernel), t, moving)
        spread, killed = seen.diffusion_term(brown, t), well.rate(0.0, moving + well.centre)
        yield _residual(note, seen.rate - spread + killed, seen.rate, spread, killed)


@equation_identity(
    statement="∂_t J + b·∇J + ½σσᵀ:∇²J − ½|σᵀ∇J|² + V = 0 for J = −log φ",
    equation="Premkumar 2023, eq. (3.24)–(3.25)",
    kind=Kind.RESIDUAL,
    left="largest relative residual at noised points, by differentiating log φ",
    applies=Setting.has_density,
)
def hjb_residual(setting: Setting) -> Iterator[Outcome]:
    """Computes residuals for a tilted end (``V = 0``), the reversed density (``V = ∇·f``), and a killing well."""
    tilt, well, process = Tilt.of(setting), Well.of(setting), setting.process
    for note, t, x in _points(setting):
        seen = Derivatives.of(lambda t, x: -tilt.log_potential(t, x), t, x)
        yield _hjb(f"tilted end, {note}", seen, process, t, _drift(setting, t, x), torch.zeros_like(t))
        back = Derivatives.of(lambda s, x: -setting.exact.log_density(setting.horizon - s, x), setting.horizon - t, x)
        cost = _growth(setting, t, x)
        yield _hjb(f"reverse diffusion, {note}", back, process, t, -_drift(setting, t, x), cost)
    rows = noising_states(setting, (), "well")[0][:POINTS]
    t = torch.full((len(rows),), 0.3 * well.horizon, dtype=torch.float64)
    seen = Derivatives.of(lambda t, x: -_log_survival(well, t, x), t, rows)
    yield _hjb("killing well", seen, well.process, t, torch.zeros_like(rows), well.rate(0.0, rows))


@equation_identity(
    statement="φ(t, x) = ρ_{T−t}(x) solves ∂_t φ − f·∇φ + ½g²Δφ = (∇·f)φ",
    equation="Premkumar 2023, eq. (3.29)–(3.33)",
    kind=Kind.RESIDUAL,
    left="largest relative residual at noised points, by differentiating the time-reversed density",
    applies=Setting.has_density,
)
def density_read_backwards_is_a_potential(setting: Setting) -> Iterator[Outcome]:
    """Computes the residual with drift ``b = −f`` and killing rate ``V = ∇·f``."""
    for note, s, x in _points(setting):
        t = setting.horizon - s
        seen = Derivatives.of(_one_over(lambda t, x: setting.exact.log_density(setting.horizon - t, x)), t, x)
        flow, spread = -seen.along(_drift(setting, s, x)), seen.diffusion_term(setting.process, s)
        cost = _growth(setting, s, x)
        yield _residual(note, seen.rate + flow + spread - cost, seen.rate, flow, spread, cost)


@equation_identity(
    statement="φ = ρ_{T−t} and φ̂ = 1 solve the Schrödinger system from ρ_T to ρ with b = −f and V = ∇·f",
    equation="Premkumar 2023, eq. (3.28), (3.34), appendix A.2",
    kind=Kind.RESIDUAL,
    left="standard deviation over p_t, up to constants, of the difference from a grid solution found by iteration",
    applies=Setting.has_density_on_line,
)
def schroedinger_system_of_reverse_diffusion(setting: Setting) -> Iterator[Outcome]:
    """Solves the system without knowing the solution. ``V`` depends on time alone and scales ``φ`` by a constant."""
    reverse = ReversedDrift(setting.process)
    grid = line_grid(setting, 5.0)
    bridge = solve_schroedinger(reverse, setting.exact.marginal(setting.horizon), setting.data, grid)
    for share in _TIMES:
        t = share * setting.horizon
        weights = bridge.density(t) * grid.volume
        density = grid.field(setting.exact.log_density(setting.horizon - t, grid.points))
        for name, logs in (
            ("log φ − log ρ", bridge.potentials.log_phi(t) - density),
            ("log φ̂", bridge.potentials.log_phi_hat(t)),
        ):
            gap = logs - weights @ logs
            yield Outcome(math.sqrt(weights @ gap**2), allowance=_SMALL, note=f"{name}, t = {share:g} T")


@equation_identity(
    statement="G(y, t | x, s) φ(t, y)/φ(s, x) is the transition density of the process with drift b + σσᵀ∇log φ",
    equation="Premkumar 2023, eq. (3.26)–(3.27); Doob 1957",
    kind=Kind.RESIDUAL,
    left="largest relative residual of the Fokker–Planck equation in (t, y)",
    applies=Setting.has_density,
)
def doob_transition_residual(setting: Setting) -> Iterator[Outcome]:
    """Computes the residual from ``T/5`` to three later times."""
    tilt, process, s = Tilt.of(setting), setting.process, 0.2 * setting.horizon
    for share in (0.3, 0.5, 0.9):
        moment = share * setting.horizon
        x, y = (states[:POINTS] for states in noising_states(setting, (s, moment), f"doob {share}")[1:])
        t = torch.full((len(y),), moment, dtype=torch.float64)

        def log_doob(t: Tensor, y: Tensor, x: Tensor = x) -> Tensor:
            return _log_transition(process, s, x, t, y) + tilt.log_potential(t, y) - tilt.log_potential(s, x)

        seen = Derivatives.of(_one_over(log_doob), t, y)
        potential = Derivatives.of(tilt.log_potential, t, y)
        scale = process.scale(t)
        pull = torch.einsum("bij,bj->bi", (scale @ scale.T).expanded(setting.dim), potential.slope)
        flow = seen.along(_drift(setting, t, y) + pull)
        growth = _growth(setting, t, y) + 2.0 * potential.diffusion_term(process, t)
        spread = seen.diffusion_term(process, t)
        yield _residual(f"T/5 → {share:g} T", seen.rate + flow + growth - spread, seen.rate, flow, growth, spread)


def _points(setting: Setting) -> Iterator[tuple[str, Tensor, Tensor]]:
    times = tuple(share * setting.horizon for share in _TIMES)
    for share, moment, x in zip(_TIMES, times, noising_states(setting, times, "residual")[1:], strict=True):
        rows = x[:POINTS]
        yield f"t = {share:g} T", torch.full((len(rows),), moment, dtype=torch.float64), rows


def _one_over(log_function: RowFunction) -> RowFunction:
    """Returns ``f`` divided by its values at the given points: its derivatives there are those of ``f``, over ``f``."""

    def ratio(t: Tensor, x: Tensor) -> Tensor:
        logs = log_function(t, x)
        return (logs - logs.detach()).exp()

    return ratio


def _residual(note: str, residual: Tensor, *terms: Tensor) -> Outcome:
    size = relative_size(residual, *terms) if terms else float(residual.abs().max())
    return Outcome(size, allowance=_SMALL, note=note)


def _hjb(note: str, seen: Derivatives, process: LinearProcess, t: Tensor, drift: Tensor, cost: Tensor) -> Outcome:
    flow, spread = seen.along(drift), seen.diffusion_term(process, t)
    energy = 0.5 * process.scale(t).T(seen.slope).square().sum(1)
    return _residual(note, seen.rate + flow + spread - energy + cost, seen.rate, flow, spread, energy, cost)


def _drift(setting: Setting, t: Tensor, x: Tensor) -> Tensor:
    return setting.process.drift(t, x)


def _growth(setting: Setting, t: Tensor, x: Tensor) -> Tensor:
    """Computes ``∇·b``."""
    free = x.detach().requires_grad_()
    drift = setting.process.drift(t, free)
    return divergence(drift, free) if drift.requires_grad else torch.zeros_like(t)


def _log_transition(process: LinearProcess, s: float, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Computes ``log G``, differentiable in ``t``."""
    law, dim = process.transition(s, t), x.shape[1]
    root = torch.linalg.cholesky(law.covariance.expanded(dim))
    gap = (y - law.mean(x)).unsqueeze(-1)
    white = torch.linalg.solve_triangular(root, gap, upper=False).squeeze(-1)
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * dim * math.log(2.0 * math.pi)
    return -0.5 * white.square().sum(1) - volume


def log_mehler(well: Well, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Computes ``log G`` of Brownian motion killed at rate ``½k²|x|²``, symmetric in its ends."""
    angle, dim = well.k * well.sigma * t, x.shape[1]
    squares, product = x.square().sum(1) + y.square().sum(1), (x * y).sum(1)
    exponent = 0.5 * well.k / well.sigma * (squares / angle.tanh() - 2.0 * product / angle.sinh())
    return 0.5 * dim * (well.k / (2.0 * math.pi * well.sigma * angle.sinh())).log() - exponent


def _log_survival(well: Well, t: Tensor, x: Tensor) -> Tensor:
    """Computes ``log E[e^{−∫_t^T V} | X_t = x]``: the formula of Cameron & Martin."""
    angle, dim = well.k * well.sigma * (well.horizon - t), x.shape[1]
    return -0.5 * dim * angle.cosh().log() - 0.5 * well.k / well.sigma * angle.tanh() * (x - well.centre).square().sum(
        1
    )
