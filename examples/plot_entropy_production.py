r"""Entropy production along paths
================================

The entropy production of a path compares the probability of the path with that of the reversed path. Let ``P`` be the
law of the paths of a diffusion, and ``P̃`` the law of the same process, started where ``P`` ends and read backwards:

.. math:: \Delta S = \log\frac{dP}{d\tilde P} = Q + \log \rho_0(X_0) - \log \rho_T(X_T), \qquad
   \mathbb E\, e^{-\Delta S} = 1, \qquad \mathbb E\, \Delta S \ge 0 .

``Q`` is the heat that the path gives to its medium, in units of the thermal energy (Seifert 2012).
:func:`sbridge.functionals.entropy_production` computes ``ΔS`` from the step kernels of the simulated chain, so both
statements hold at any step size. The page shows them for a rotating process, splits ``ΔS`` into its parts, and measures
the cost of reversing a diffusion model.
"""

# sphinx_gallery_thumbnail_number = 1

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import functionals
from sbridge.measures import Direction, Estimate
from sbridge.processes import EulerMaruyama

FAST = "--fast" in sys.argv
PATHS = 10_000 if FAST else 40_000
STEPS = 50 if FAST else 100
UPDATES = 200 if FAST else 3000

# %%
# A stationary process that is not in detailed balance
# ----------------------------------------------------
# ``dX = −(κ − ωJ) X dt + dW`` with ``J`` the rotation by a right angle. The rotation leaves the stationary distribution
# ``N(0, 1/2κ)`` as it is, but paths circle in one direction. The entropy production is ``2ω²T/κ``.

kappa, omega, horizon = 1.0, 0.7, 2.0
turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
unit = torch.eye(2, dtype=torch.float64)
process = sb.OrnsteinUhlenbeck(kappa * unit - omega * turn, sigma=1.0, horizon=horizon)
stationary = sb.Gaussian(torch.zeros(2, dtype=torch.float64), unit / (2 * kappa))


def log_stationary(t, x):
    """The stationary log density."""
    return stationary.log_density(x)


paths = sb.PathMeasure(process, None, stationary, grid=sb.time.TimeGrid.uniform(STEPS)).sample(PATHS, seed=0)
made = functionals.entropy_production(paths, None, log_stationary)
print(f"entropy production: {made}; closed form {2 * omega**2 * horizon / kappa:.4f}")
print(f"mean of exp(−ΔS): {Estimate.of((-made.values).exp())}")

# %%
# On single paths ``ΔS`` is often negative. The fluctuation theorem says how often: ``p(s) = eˢ p(−s)``.

values = made.values.numpy()
edges = np.linspace(-4, 4, 33)
counts, _ = np.histogram(values, edges)
middle = 0.5 * (edges[1:] + edges[:-1])
positive, negative = counts[middle > 0], counts[middle < 0][::-1]
seen = (positive > 20) & (negative > 20)
ratio = np.log(positive[seen] / negative[seen])
error = np.sqrt(1 / positive[seen] + 1 / negative[seen])
fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained")
left.hist(values, 80, range=(-4, 8), density=True, color="#0072B2")
left.axvline(values.mean(), color="#D55E00", label="mean")
left.set(xlabel=r"$\Delta S$", ylabel="density", title=f"{(values < 0).mean():.0%} of the paths look reversed")
left.legend(frameon=False)
right.errorbar(middle[middle > 0][seen], ratio, 2 * error, fmt="o", markersize=3, color="#0072B2", label="histogram")
right.plot([0, 4], [0, 4], color="#D55E00", label="$s$")
right.set(xlabel="$s$", ylabel=r"$\log p(s)/p(-s)$", title="The fluctuation theorem")
right.legend(frameon=False)

# %%
# Housekeeping and relaxation
# ---------------------------
# Out of the stationary state the entropy production has two parts: the housekeeping heat keeps the rotation going, the
# rest is produced by the relaxation. Each has a positive mean and a mean exponential of one. The current velocity gives
# the mean of the whole by another route, ``∫ v·D⁻¹v dt``.

displaced = sb.Gaussian(torch.tensor([1.0, 0.0], dtype=torch.float64), unit / (2 * kappa))
exact = sb.ExactScore(process, displaced)


def velocity(t, x):
    """The current velocity ``b − ½∇log ρ``."""
    return process.drift(t, x) - 0.5 * exact(t, x)


paths = sb.PathMeasure(process, None, displaced, grid=sb.time.TimeGrid.uniform(STEPS)).sample(PATHS, seed=1)
whole = functionals.entropy_production(paths, None, exact.log_density)
kept = functionals.housekeeping_heat(paths, None, log_stationary)
for name, part in {"whole": whole, "housekeeping": kept, "relaxation": whole - kept}.items():
    print(f"{name}: {part.estimate}; mean of exp(−part): {Estimate.of((-part.values).exp())}")
print(f"whole, from the current velocity: {functionals.dissipation(paths, velocity)}")

# %%
# What it costs to reverse a diffusion model
# ------------------------------------------
# The noising process of a diffusion model produces entropy. A model ``B`` of its reversal has the cost ``KL(F ‖ B)``
# (:func:`sbridge.functionals.reversal_cost`). If ``B`` keeps the force of the noising process, the cost is the entropy
# production. The exact score removes it, up to the time step. A learned score removes most of it.

data = sb.GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[1.5, 0.0], [-1.5, 0.5]], dtype=torch.float64),
    0.15 * unit.repeat(2, 1, 1),
)
noising = sb.OrnsteinUhlenbeck(rate=1.0, sigma=2.0**0.5, horizon=1.0)
score = sb.ExactScore(noising, data)
rows = sb.Samples(data.sample(20_000, torch.Generator().manual_seed(0)).float())
learned = sb.diffuse(rows, process=noising, solver=sb.ScoreMatching(updates=UPDATES), seed=2).backward.control
grid = sb.time.TimeGrid.uniform(4 * STEPS)
forward = sb.PathMeasure(noising, None, data, grid=grid, rule=EulerMaruyama())
paths = forward.sample(PATHS // 5, seed=3)
controls = {
    "own force": lambda t, x: 2.0**0.5 * noising.drift(t, x),
    "learned score": lambda t, x: learned(t, x.float()).to(x),
    "exact score": lambda t, x: 2.0**0.5 * score(t, x),
}
end, costs = score.marginal(1.0), {}
for name, control in controls.items():
    backward = sb.PathMeasure(noising, control, end, Direction.BACKWARD, grid, EulerMaruyama())
    with torch.no_grad():
        costs[name] = functionals.reversal_cost(paths, forward, backward)
    print(f"{name}: {costs[name].estimate} nats")
print(f"entropy production of noising: {functionals.entropy_production(paths, None, score.log_density).estimate} nats")

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
numbers = [cost.estimate for cost in costs.values()]
bars = [2 * number.standard_error for number in numbers]
ax.barh(list(costs), [number.value for number in numbers], xerr=bars, color=["#999999", "#0072B2", "#009E73"])
ax.invert_yaxis()
ax.set(xlabel="cost of the reversal, nats", title="A score removes the irreversibility of noising")

# %%
# With your own process
# ---------------------
# :func:`~sbridge.functionals.heat` and :func:`~sbridge.functionals.work` take paths of any process and control, also of
# fitted bridges (``bridge.forward.sample(n, seed=0)`` and ``bridge.forward.control``). Densities are needed at the two
# ends only. ``sbridge verify --only fluctuation_theorems entropy_production_of_rotation`` checks the statements.
