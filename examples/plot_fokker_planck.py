r"""Diffusion of a mixture: particles, closed form and Fokker–Planck
================================================================

Two Gaussian bumps drift and widen under an Ornstein–Uhlenbeck process. Three methods give their density: simulated
particles (:class:`sbridge.PathMeasure`), the closed form of a linear process (:class:`sbridge.ExactScore`), and the
Fokker–Planck equation solved on a grid (:func:`sbridge.pde.fokker_planck`). They agree, and the error of the grid falls
with the square of the cell width. The last part has no closed form: it solves the same equation in a double well with
particles and grid.

.. math:: dX = b(X)\, dt + \sigma\, dW, \qquad
   \frac{\partial p}{\partial t} = -\nabla\!\cdot(b\, p) + \tfrac12 \sigma^2 \Delta p .
"""

# sphinx_gallery_thumbnail_number = 3

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import pde

FAST = "--fast" in sys.argv
PARTICLES = 20_000 if FAST else 200_000

# %%
# The process and its start
# -------------------------
# ``dX = −X dt + σ dW`` from two narrow bumps of unequal weight.

process = sb.OrnsteinUhlenbeck(rate=1.0, sigma=0.8, horizon=1.5)
start = sb.GaussianMixture(
    weights=torch.tensor([0.35, 0.65], dtype=torch.float64),
    means=torch.tensor([[-1.6], [1.0]], dtype=torch.float64),
    covariances=torch.tensor([[[0.03]], [[0.10]]], dtype=torch.float64),
)
exact = sb.ExactScore(process, start)


def density_at(t, grid):
    """The closed form at the cell centres."""
    return exact.log_density(t, grid.points).exp().numpy()


# %%
# Three methods
# -------------
# The grid solution is stored at every knot of its time grid. Particles are drawn at the four times shown. The two
# curves coincide (dashed on grey), and the histogram scatters about them.

grid = pde.Grid.of(-4.0, 4.0, 400)
solution = pde.fokker_planck(process, grid, start, sb.TimeGrid.uniform(150))
knots = [0, 15, 50, 150]
times = [float(solution.times[k]) for k in knots]
particles = sb.PathMeasure(process, None, start).marginals(times, PARTICLES, seed=0)[..., 0].numpy()

fig, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained")
line = grid.centres[0]
for ax, k, t, states in zip(axes.flat, knots, times, particles, strict=True):
    ax.hist(states, bins=np.linspace(-3, 3, 81), density=True, color="#0072B2", alpha=0.3, label="particles")
    ax.plot(line, density_at(t, grid), color="#333333", linewidth=3, alpha=0.35, label="closed form")
    ax.plot(line, solution.density[k], color="#D55E00", linewidth=1.2, linestyle="--", label="Fokker–Planck on a grid")
    ax.set(xlim=(-3, 3), xlabel="$x$", ylabel="density", title=f"$t$ = {t:.2f}")
axes[0, 1].legend(frameon=False, fontsize=8, loc="upper left")
fig.suptitle("One density by three methods")

print(f"mass on the grid: {solution.mass.min():.15f} to {solution.mass.max():.15f}")
for k, t, states in zip(knots[1:], times[1:], particles[1:], strict=True):
    gap = grid.integrate(abs(solution.density[k] - density_at(t, grid)))
    law = exact.marginal(t)
    mean = float(law.weights @ law.means[:, 0])
    error = states.std() / PARTICLES**0.5
    print(
        f"t = {t:.2f}: L1 distance of grid and closed form {gap:.1e}; "
        f"mean of the particles {states.mean():+.4f} ± {error:.4f} (s.e.), exactly {mean:+.4f}"
    )

# %%
# Order of the error
# ------------------
# Cells and time steps are refined together. The slope between neighbouring grids should be 2.

cells = [50, 100, 200, 400]
gaps = []
for n in cells:
    coarse = pde.Grid.of(-4.0, 4.0, n)
    last = pde.fokker_planck(process, coarse, density_at(0.0, coarse), sb.TimeGrid.uniform(n)).density[-1]
    gaps.append(coarse.integrate(abs(last - density_at(process.horizon, coarse))))
slopes = np.log2(np.divide(gaps[:-1], gaps[1:]))
print("slopes:", ", ".join(f"{slope:.2f}" for slope in slopes))

fig, ax = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
ax.loglog(cells, gaps, "o-", color="#D55E00", label="L1 error at the end")
ax.loglog(cells, gaps[-1] * (cells[-1] / np.array(cells)) ** 2, color="#333333", linestyle=":", label="slope −2")
ax.set(xlabel="cells and time steps", ylabel="L1 error", title="The grid solution converges at second order")
ax.set_xticks(cells, [str(n) for n in cells])
ax.minorticks_off()
ax.legend(frameon=False)

# %%
# Without a closed form
# ---------------------
# ``b = −∇Ψ``, ``Ψ = ½(x² − 1)²``: the same two bumps settle in two wells and leak over the barrier. Any function of
# time and state can be a drift; particles then move by Euler–Maruyama steps.

wells = sb.DriftProcess(lambda t, x: -2.0 * x * (x.square() - 1.0), sigma=0.8, horizon=1.5)
solution = pde.fokker_planck(wells, grid, start, sb.TimeGrid.uniform(300))
measure = sb.PathMeasure(wells, None, start, grid=sb.TimeGrid.uniform(300))
states = measure.marginals([wells.horizon], PARTICLES, seed=2)[0, :, 0].numpy()
left = grid.integrate(solution.density[-1] * (line < 0))
share = float((states < 0).mean())
error = (share * (1 - share) / PARTICLES) ** 0.5
print(f"in the left well at the end: {left:.4f} on the grid, {share:.4f} ± {error:.4f} (s.e.) of the particles")

fig, (above, beside) = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", width_ratios=(1.3, 1))
image = above.pcolormesh(
    solution.times, line, solution.density.T, cmap="Blues", shading="nearest", vmax=np.quantile(solution.density, 0.995)
)
fig.colorbar(image, ax=above, label="density")
above.set(ylim=(-2.2, 2.2), xlabel="time $t$", ylabel="$x$", title="Fokker–Planck in a double well")
beside.hist(states, bins=np.linspace(-2.2, 2.2, 81), density=True, color="#0072B2", alpha=0.3, label="particles")
beside.plot(line, solution.density[-1], color="#D55E00", linewidth=1.4, label="Fokker–Planck on a grid")
beside.set(xlim=(-2.2, 2.2), xlabel="$x$", ylabel="density", title=f"$t$ = {wells.horizon:g}")
beside.legend(frameon=False, fontsize=8, loc="upper left")

# %%
# With your own data
# -------------------
# Your drift is any function of time and states, ``sb.DriftProcess(drift, sigma)``. Your start is any distribution with
# a density: :class:`sbridge.Gaussian`, :class:`sbridge.GaussianMixture`, or values at the cell centres. Make the grid
# so wide that no mass reaches its edge, and halve its cells once to see the error. In more than two dimensions use
# particles: ``sb.PathMeasure(process, None, start).sample(n, seed=0)``.
