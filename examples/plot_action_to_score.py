r"""The score from the action, by six routes
========================================

Reverse diffusion is a control problem. Run the noising process ``dX = −X dt + √2 dW`` backwards with a control ``u``,
and pay ``½|u|²`` along the path, ``∇·b`` per unit time and ``−log ρ_0`` at its end. The optimal control is the score of
the noised data, ``u* = σ∇log ρ``, and the value is ``−log ρ_t`` (Premkumar 2023, section 3.3). So the score can be
learned without a single sample of the data, from the action alone.

Six routes lead to it here. Three minimise the action or its residual over controls: adjoint matching, the relative
entropy with the reversible adjoint of torchsde, and the log-variance. Two know samples but no score: the first
half-step of iterative proportional fitting, and the action of the reversal as a training loss. The last solves the
Hamilton–Jacobi–Bellman equation on a grid. Each is judged by the exact score and by two numbers that vanish together:

* the *action gap* ``E[action] − E[−log ρ_T(X_0)] = KL(P^u ‖ P*)``, on paths of the control,
* the *denoising excess* ``½∫E|u − σ∇log p(X_t | X_0)|² − |u* − σ∇log p(X_t | X_0)|² dt = KL(P* ‖ P^u)``, on noised
  data.
"""

import math
import sys
import time

import matplotlib.pyplot as plt
import torch

import sbridge as sb
from sbridge.simulation import ReversibleAdjoint
from sbridge.solvers import MeanMatching, TrustRegion

FAST = "--fast" in sys.argv
SHORT = 0.05 if FAST else 1.0
SIGMA, HORIZON = math.sqrt(2.0), 1.5


def updates(number):
    """A twentieth of them in the short form."""
    return max(2, int(SHORT * number))


# %%
# The problem
# -----------
# Two modes in one dimension. ``sb.reversal_problem`` makes the control problem from the density; it starts at ``ρ_T``.

data = sb.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.5], [1.0]]), 0.09 * torch.ones(2, 1, 1))
noising = sb.OrnsteinUhlenbeck(1.0, SIGMA, 0.0, HORIZON)
problem, exact = sb.reversal_problem(noising, data), sb.ExactScore(noising, data)
rows = sb.Samples(data.sample(20_000, torch.Generator().manual_seed(0)))
prior = problem.start

# %%
# Two numbers and the error
# -------------------------
# A control takes the time ``s = T − t`` of the reversal. The denoising excess compares ``u`` and ``u*`` on the same
# draws.

draws = torch.Generator().manual_seed(1)
TIMES = torch.linspace(0.01, 1.0, 60) * HORIZON
clean, noise = data.sample(2000, draws), torch.randn((60, 2000, 1), generator=draws)


def denoising_excess_and_error(control):
    """Integrals over time on noised data: the excess of the denoising loss, and the relative error of the control."""
    excess, missed, size = [], 0.0, 0.0
    for k, t in enumerate(TIMES.tolist()):
        spread = math.sqrt(1.0 - math.exp(-2.0 * t))
        x = math.exp(-t) * clean + spread * noise[k]
        target = -SIGMA * noise[k] / spread
        with torch.no_grad():
            found, best = control(torch.tensor(HORIZON - t), x), SIGMA * exact(t, x)
        excess.append(0.5 * ((found - target).square() - (best - target).square()).sum(1).mean())
        missed, size = missed + (found - best).square().sum(), size + best.square().sum()
    return float(torch.trapezoid(torch.stack(excess), TIMES)), float(missed / size)


def action_gap(control):
    """Mean and standard error of ``action + log ρ_T(X_0)`` on paths of the control.

    ``∫u·dW`` is added to the action of each path. Its mean is zero, and it takes most of the noise away.
    """
    measure = sb.PathMeasure(problem.process, control, problem.start, grid=sb.TimeGrid.uniform(200))
    paths = measure.sample(4000, seed=3)
    gap = prior.log_density(paths.x[0]).double() - sb.objectives.log_weight(paths, problem.costs)
    return float(gap.mean()), float(gap.std() / len(gap) ** 0.5)


# %%
# Six routes
# ----------
# While adjoint matching learns, both numbers are recorded. Every control has equal options across data sets; none has
# seen the score.

history = []


def record(state, info):
    """Both numbers of the control under training, every 50 updates."""
    if state.step % 50 == 1:
        excess, _ = denoising_excess_and_error(state.control)
        history.append((state.step, action_gap(state.control)[0], excess))


def from_bridge(bridge):
    """The backward control of a bridge as a function of the reversal's time."""
    return lambda s, x: bridge.backward.control(HORIZON - s, x)


def on_the_grid():
    """``u = −σ∂J/∂x`` of the Hamilton–Jacobi–Bellman equation: central differences, linear interpolation."""
    grid, times = sb.pde.Grid.of(-6.0, 6.0, 1200), sb.TimeGrid.uniform(300)
    values = sb.pde.hamilton_jacobi_bellman(problem.process, grid, problem.terminal_cost, times)
    x = grid.points[:, 0].double()
    width = float(x[1] - x[0])
    control = -SIGMA * torch.gradient(torch.as_tensor(values), spacing=width, dim=1)[0]

    def interpolated(s, y):
        row = control[round(float(s) / HORIZON * 300)]
        place = ((y[:, 0].double() - x[0]) / width).clamp(0, len(x) - 2)
        low = place.long()
        return (row[low] + (place - low) * (row[low + 1] - row[low])).to(y).unsqueeze(1)

    return interpolated


bridge_problem = sb.BridgeProblem(rows, prior, noising)
halves = {"forward": MeanMatching(), "backward": MeanMatching(), "start": sb.starts.ZeroStart()}
routes = {
    "adjoint matching": lambda: (
        sb.solve(problem, sb.AdjointMatching(updates=updates(1000)), seed=0, callbacks=[record]).control
    ),
    "relative entropy": lambda: (
        sb.solve(
            problem,
            sb.RelativeEntropy(updates=updates(200), start=sb.starts.GaussianStart(), gradient=ReversibleAdjoint()),
            seed=0,
        ).control
    ),
    "log-variance": lambda: (
        sb.solve(
            problem,
            sb.LogVariance(updates=updates(900), start=sb.starts.GaussianStart(), trust_region=TrustRegion()),
            seed=0,
        ).control
    ),
    "first half-step of IPF": lambda: from_bridge(
        sb.solve(bridge_problem, sb.IPF(half_steps=2, updates=updates(2000), **halves), seed=0)
    ),
    "score matching, action": lambda: from_bridge(
        sb.solve(bridge_problem, sb.ScoreMatching(sb.diffusion.Action(), updates=updates(3000)), seed=0)
    ),
    "grid": on_the_grid,
}
controls = {}
print(f"{'route':24s} {'action gap':>18s} {'denoising excess':>17s} {'error':>8s} {'CPU s':>6s}")
for name, route in routes.items():
    began = time.process_time()
    controls[name] = route()
    seconds = time.process_time() - began
    gap, deviation = action_gap(controls[name])
    excess, error = denoising_excess_and_error(controls[name])
    print(f"{name:24s} {gap:9.4f} ± {deviation:.4f} {excess:17.4f} {error:8.4f} {seconds:6.0f}")

# %%
# The two numbers while adjoint matching learns
# ---------------------------------------------
# One is an average over paths of the control, the other over noised data; neither knows of the other. The action gap is
# ``KL(P^u ‖ P*)`` and the excess ``KL(P* ‖ P^u)``, so they agree once the control is close. The gap ends at what 200
# time steps cost.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
steps, gaps, excesses = zip(*history, strict=True)
left.semilogy(steps, gaps, "o-", label="action gap, on paths of the control")
left.semilogy(steps, excesses, "s-", label="denoising excess, on noised data")
left.set_xlabel("update")
left.set_ylabel("nats")
left.legend()
left.set_title("Adjoint matching")

x = torch.linspace(-3.0, 3.0, 301).unsqueeze(1)
remaining = 0.2
right.plot(x, SIGMA * exact(remaining, x), color="black", linewidth=4, alpha=0.3, label="σ∇log ρ")
for name, control in controls.items():
    with torch.no_grad():
        right.plot(x, control(torch.tensor(HORIZON - remaining), x), linewidth=1, label=name)
right.set_xlabel("x")
right.set_title(f"The control at {remaining} before the end")
right.legend(fontsize="small")

# %%
# Data of your own
# ----------------
# The reversal needs a density at time 0. Samples of your own have one once each is a narrow Gaussian, and the score of
# this mixture is exact too: the empirical distribution, slightly noised. In two dimensions, with 200 points on two
# moons:

points = sb.datasets.two_moons(200, torch.Generator().manual_seed(0))
points = (points - points.mean(0)) / points.std(0)
own = sb.GaussianMixture(torch.full((200,), 1 / 200), points, 0.04 * torch.eye(2).expand(200, 2, 2))
own_problem = sb.reversal_problem(noising, own)
solution = sb.solve(own_problem, sb.AdjointMatching(updates=updates(1000)), seed=0)
ends = solution.sample(2000, seed=1).x[-1]
fresh = own.sample(2000, torch.Generator().manual_seed(2))
other = own.sample(2000, torch.Generator().manual_seed(3))
distance, floor = (float(sb.metrics.energy_distance(one, fresh)) for one in (ends, other))
print(f"two moons: energy distance {distance:.4f}, between two draws of the mixture {floor:.4f}")

fig, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for ax, cloud, title in zip(axes, (fresh, ends), ("noised points", "learned from their density"), strict=True):
    ax.scatter(*cloud.T, s=3)
    ax.set_title(title)
