r"""Running a diffusion backward: naive and true reversal
=====================================================

Noise turns data into a Gaussian. To recover the data it is not enough to reverse the drift, nor to keep it: the
reversed equation has one more term, the score (Anderson 1982),

.. math:: dX = b\, dt + \sigma\, dW \quad\text{reversed is}\quad
   dY = (-b + \sigma^2 \nabla\log\rho)\, ds + \sigma\, dB .

This page simulates all three from the same states with the same noise: first in one dimension, where exact densities
show the difference (:func:`sbridge.diffusion.reverse_diffusion` with :class:`sbridge.ExactScore`), then on two moons
(:func:`sbridge.plotting.reversals`).
"""

import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import datasets, plotting

FAST = "--fast" in sys.argv
N = 10_000 if FAST else 100_000

# %%
# Three ways back
# ---------------
# The data are a mixture of three bumps. The noise is an Ornstein–Uhlenbeck process, so short that some of the data can
# still be seen at its end. The reversal starts from the exact distribution ``ρ_T``, so only the score makes a
# difference.

process = sb.OrnsteinUhlenbeck(rate=1.0, sigma=2.0**0.5, horizon=1.0)
data = sb.GaussianMixture(
    weights=torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    means=torch.tensor([[-2.0], [0.3], [2.2]], dtype=torch.float64),
    covariances=torch.tensor([[[0.04]], [[0.02]], [[0.03]]], dtype=torch.float64),
)
exact = sb.ExactScore(process, data)
true = sb.diffusion.reverse_diffusion(process, data, exact, prior=exact.marginal(process.horizon)).backward

no_score = replace(true, control=None)  # drift −b: moves away from the mean, and keeps diffusing


def twice_the_drift(t, x):
    """The control that turns the drift ``−b`` into ``+b``."""
    return 2.0 * process.drift(t, x) / 2.0**0.5


same_drift = replace(true, control=twice_the_drift)  # drift +b: keeps adding noise
ways = {"true: drift −b + σ²∇log ρ": true, "naive: drift −b": no_score, "naive: drift +b": same_drift}

# %%
# Distance from the data
# ----------------------
# The table shows L1 distances (between 0 and 2) between histograms of the states at ``t = 0`` and the density of the
# data in the same bins. The floor is the distance of equally many exact draws of the data. Means and standard errors
# are over five sets of paths. The true reversal is near the floor, and the naive ones are not.

edges = np.linspace(-9, 9, 181)
middle = torch.from_numpy((edges[1:] + edges[:-1]) / 2)[:, None]
cumulative = sum(
    float(w) * torch.special.ndtr((torch.from_numpy(edges) - m) / v.sqrt())
    for w, m, v in zip(data.weights, data.means[:, 0], data.covariances[:, 0, 0], strict=True)
)
shares = cumulative.diff().numpy()


def distance(states):
    """L1 distance of the histogram from the data's shares of the bins; what lies outside counts."""
    found = np.histogram(states, edges)[0] / len(states)
    return abs(found - shares).sum() + (1 - found.sum())


def show(name, sets):
    """The mean distance of sets of states, with its standard error, and their mean standard deviation."""
    found = np.array([distance(states) for states in sets])
    print(f"{name}: L1 {found.mean():.3f} ± {found.std(ddof=1) / len(found) ** 0.5:.3f} (s.e.), ", end="")
    print(f"standard deviation of the states {np.mean([states.std() for states in sets]):.3f}")


SETS = 5
draws = data.sample(SETS * N, torch.Generator().manual_seed(2))[:, 0].split(N)
show(f"floor, {N} draws of the data", [one.numpy() for one in draws])
ends = {}
for name, measure in ways.items():
    sets = measure.marginals([0.0], SETS * N, seed=1)[0, :, 0].split(N)
    show(name, [one.numpy() for one in sets])
    ends[name] = sets[0].numpy()
fig, panels = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
colours = ("#0072B2", "#D55E00", "#CC79A7")
for ax, (name, states), colour in zip(panels, ends.items(), colours, strict=True):
    ax.hist(states, edges, density=True, color=colour, alpha=0.5, label="states at $t = 0$")
    ax.plot(middle, data.log_density(middle).exp(), color="#333333", linewidth=1, label="data")
    ax.set(xlim=(-8, 8), xlabel="$x$", title=name)
    ax.legend(frameon=False, fontsize=8)
panels[0].set_ylabel("density")
fig.suptitle("Distribution at $t = 0$ after a reversal from $\\rho_T$")

# %%
# Paths
# -----
# The axis shows the time of the noising, so the reversal runs from 1 (orange, noise) on the left to 0 (blue) on the
# right.

fig, panels = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
for ax, (name, measure) in zip(panels, ways.items(), strict=True):
    plotting.trajectories(measure.sample(80, seed=1), ax=ax)
    ax.set(xlim=(1, 0), ylim=(-7, 7), title=name, xlabel="time $t$, running back", ylabel="")
panels[0].set_ylabel("$x$")
fig.suptitle("Paths with the same starts and the same noise")

# %%
# In the plane
# ------------
# The function :func:`sbridge.plotting.reversals` draws this comparison for any reverse diffusion. Here the data are two
# moons, and the score is that of the points. Without the score the paths move away and leave the panel.

points = datasets.make("two_moons", 1000, seed=0)
noising = sb.fitting.choose_noise_schedule(sb.Samples(points))
bridge = sb.diffusion.reverse_diffusion(noising, sb.Samples(points), sb.ExactScore(noising, sb.Samples(points)))
fig, ax = plt.subplots(figsize=(9, 4.4))
plotting.reversals(bridge, seed=3, ax=ax)
fig.suptitle("Two moons from noise, with and without the score")

# %%
# With your own data
# -------------------
# ``bridge = sb.diffuse(x, seed=0)`` learns the score of an array ``x``, and ``plotting.reversals(bridge, seed=1)``
# draws this comparison for it. Any other process is reversed in the same way: ``sb.diffusion.reverse_diffusion(process,
# law, score)`` takes a score that you know or have learned.
