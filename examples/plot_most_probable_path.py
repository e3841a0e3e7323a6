r"""Most probable paths and rare events
===================================

A diffusion ``dX = b dt + σ dW`` stays near a smooth path ``x(t)`` with a probability proportional to ``e^{−S[x]}``.
``S`` is the Onsager–Machlup functional:

.. math:: S[x] = \int_0^T \tfrac12 |\sigma^{-1}(\dot x - b(t, x))|^2 + \tfrac12 \nabla\!\cdot b(t, x)\, dt .

:func:`sbridge.functionals.most_probable_path` minimises it between two points. For a linear process the result is the
mean of the bridge between the points. In a double well with small noise the result is the path of escape, and its
action gives the rate of escape, which is compared with simulations.
"""

# sphinx_gallery_thumbnail_number = 2

import math
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge.functionals import freidlin_wentzell, most_probable_path

FAST = "--fast" in sys.argv
PATHS = 2000 if FAST else 5000
DURATION, STEP = (30.0, 0.03) if FAST else (60.0, 0.01)


def point(*values):
    """One point as a batch, float64."""
    return torch.tensor([values], dtype=torch.float64)


# %%
# A rotating process
# ------------------
# The pinned bridge of an Ornstein–Uhlenbeck process is Gaussian, so its most probable path is its mean.

rate = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)
process = sb.OrnsteinUhlenbeck(rate, sigma=1.0, horizon=2.0)
grid = sb.time.TimeGrid.uniform(300)
start, end = point(2.0, 0.0), point(-0.5, 1.5)
path = most_probable_path(process, start, end, grid)
clock = grid.times(2.0)
mean = torch.stack([process.pinned(float(t)).mean(start, end) for t in clock[1:-1]])
print(f"largest distance from the mean of the bridge: {float((path[1:-1] - mean).abs().max()):.1e}")

ends = [point.float().repeat(40, 1) for point in (start, end)]
noise = torch.Generator().manual_seed(0)
fig, ax = plt.subplots(figsize=(5.4, 4), layout="constrained")
times = clock[5:-1:5].tolist()
draws, states = [ends[0]], ends[0]
for before, t in zip([0.0, *times], times, strict=False):
    states = process.pinned(t, start=before).sample(states, ends[1], torch.randn(40, 2, generator=noise))
    draws.append(states)
draws = torch.stack([*draws, ends[1]])
for k in range(40):
    ax.plot(*draws[:, k].T, color="#999999", linewidth=0.4)
ax.plot(*path[:, 0].T, color="#D55E00", linewidth=2, label="most probable path")
ax.plot(*torch.cat([start, end]).T, "o", color="black")
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Draws of the bridge and its most probable path")
ax.legend(frameon=False)

# %%
# The instanton of a double well
# ------------------------------
# ``U = ¼(x² − 1)²`` has a barrier of ``ΔU = ¼`` between its wells. For small noise only the first term of the
# functional counts, the Freidlin–Wentzell action. The path of least action climbs with ``ẋ = +U'``, the reversal of the
# fall, and its action is ``2ΔU/σ²``. The other side costs nothing.


def well(sigma, horizon):
    """``dX = −U' dt + σ dW``."""
    return sb.DriftProcess(lambda t, x: x - x**3, sigma, horizon=horizon, dimension=1)


def potential(x):
    """``U``."""
    return 0.25 * (x**2 - 1.0) ** 2


sigma, horizon, grid = 0.4, 20.0, sb.time.TimeGrid.uniform(400)
process = well(sigma, horizon)
instanton = most_probable_path(process, point(-1.0), point(1.0), grid, action=freidlin_wentzell)
action = float(freidlin_wentzell(instanton, process, grid))
print(f"least action {action:.4f}, 2ΔU/σ² = {0.5 / sigma**2:.4f}")
x, t = instanton[:, 0, 0].numpy(), grid.times(horizon).numpy()
fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.6), layout="constrained")
left.plot(t, x, color="#D55E00")
left.set(xlabel="time $t$", ylabel="$x$", title=f"The instanton: action {action:.3f}")
right.plot(0.5 * (x[1:] + x[:-1]), np.diff(x) / np.diff(t), color="#D55E00", linewidth=3, label=r"$\dot x$")
line = np.linspace(-1, 1, 101)
right.plot(line, abs(line - line**3), "k--", label="$|U'|$")
right.set(xlabel="$x$", ylabel="velocity", title="Uphill it is the fall, reversed")
right.legend(frameon=False)

# %%
# The rate of escape
# ------------------
# Kramers' formula multiplies ``e^{−2ΔU/σ²}`` by the curvatures of the bottom and the top (Kramers 1940):
# ``k = √(U''(−1)|U''(0)|)/2π · e^{−2ΔU/σ²}``. The exact mean time of first passage is a double integral. The simulation
# counts the paths that have not yet reached ``x = 0.9``; after a start their number decays like ``e^{−kt}``.


def kramers(sigma):
    """Kramers' rate for small noise."""
    return math.sqrt(2.0) / (2 * math.pi) * math.exp(-0.5 / sigma**2)


def exact_rate(sigma, target=0.9):
    """One over the mean time of first passage from −1 to ``target``."""
    line = np.linspace(-3.0, target, 4001)
    weight = np.exp(2 * potential(line) / sigma**2)
    below = np.cumsum(1.0 / weight) * (line[1] - line[0])
    inside = line >= -1.0
    return 1.0 / (2 / sigma**2 * (weight * below)[inside].sum() * (line[1] - line[0]))


noises, rates, errors = (0.45, 0.39, 0.35), [], []
for number, sigma in enumerate(noises):
    measure = sb.PathMeasure(
        well(sigma, DURATION), None, sb.Point(-torch.ones(1)), grid=sb.time.TimeGrid.uniform(round(DURATION / STEP))
    )
    paths = measure.sample(PATHS, seed=number)
    reached = (paths.x[..., 0] >= 0.9).cummax(0).values
    late = paths.t >= 0.3 * DURATION
    waiting = (~reached).sum(1)[late].double()
    survived, duration = float(waiting[-1] / waiting[0]), 0.7 * DURATION
    rates.append(-math.log(survived) / duration)
    errors.append(math.sqrt((1 - survived) / (survived * float(waiting[0]))) / duration)
    print(
        f"σ = {sigma}: rate {rates[-1]:.4f} ± {errors[-1]:.4f}, exact {exact_rate(sigma):.4f}, "
        f"Kramers {kramers(sigma):.4f}"
    )

depth = np.linspace(2.2, 4.4, 50)
fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
ax.errorbar(0.5 / np.square(noises), rates, 2 * np.array(errors), fmt="o", color="#0072B2", label="simulated")
ax.plot(depth, [exact_rate(math.sqrt(0.5 / d)) for d in depth], color="#009E73", label="exact")
ax.plot(depth, [kramers(math.sqrt(0.5 / d)) for d in depth], "--", color="#D55E00", label="Kramers")
ax.set(
    yscale="log", xlabel=r"least action $2\Delta U/\sigma^2$", ylabel="rate of escape", title="Rates follow the action"
)
ax.legend(frameon=False)

# %%
# With your own process
# ---------------------
# The drift may be any differentiable function, a network too. Give ``guess`` where several ways lead to the end: the
# minimiser finds the one nearby. :func:`sbridge.functionals.onsager_machlup` gives the functional of any path and is
# differentiable in the path and in the parameters of the drift.
