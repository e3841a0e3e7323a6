r"""Exact reversal only memorises
=============================

The score of a finite set of points is known exactly. Reversal with this score to the very end returns the points
themselves and nothing new: it preserves the support of the data. This page shows it for a few points
(:class:`sbridge.ExactScore`, :func:`sbridge.diffusion.reverse_diffusion`) and shows when a path commits to one of them.
Then a trained network reverses the same noise (:func:`sbridge.diffuse`). The error of its score is what makes new
points.

If ``X_t`` given ``X_0 = x_i`` is Gaussian with mean ``m_t x_i`` and variance ``v_t``, the score of ``n`` points is

.. math:: \nabla\log\rho_t(x) = \frac{m_t\, \mathbb E[X_0 \,|\, X_t = x] - x}{v_t}, \qquad
   \mathbb E[X_0 \,|\, X_t = x] = \sum_i w_i x_i, \quad w_i \propto e^{-|x - m_t x_i|^2 / 2 v_t} .
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import datasets

FAST = "--fast" in sys.argv
N = 1000 if FAST else 4000
UPDATES = 1200 if FAST else 6000


def knots(steps, first):
    """0, then ``steps`` steps from ``first`` to 1, much finer near 0."""
    low = first ** (1 / 7)
    return sb.TimeGrid((0.0, *((low + (1 - low) * k / steps) ** 7 for k in range(steps)), 1.0))


# %%
# Twelve points
# -------------
# The reversal stops at a time at which the remaining noise is invisible.

points = datasets.make("circles", 12, seed=4).double()
data = sb.Samples(points)
process = sb.fitting.choose_noise_schedule(data)
exact = sb.ExactScore(process, data)
bridge = sb.diffusion.reverse_diffusion(process, data, exact, grid=knots(200, 1e-6))
paths = bridge.backward.sample(N, seed=1)
generated = sb.generate(bridge, N, seed=1)

nearest = torch.cdist(generated, points, compute_mode="donot_use_mm_for_euclid_dist").min(1)
print(f"largest distance of {N} generated points to a data point: {float(nearest.values.max()):.1e}")
counts = torch.bincount(nearest.indices, minlength=len(points))
expected = N / len(points)
chi2 = float(((counts - expected) ** 2 / expected).sum())
print(f"how often each point comes back: {counts.tolist()}")
print(f"chi-square of equal frequencies {chi2:.1f} with {len(points) - 1} degrees of freedom")

# %%
# When a path commits
# -------------------
# ``E[X_0 | X_t]``, the conditional mean of the points given the state, moves from the centre of the data to a single
# point. The entropy of its weights falls from the logarithm of the number of points to zero, within a limited range of
# times. Before this range all paths are alike; after it, each path only approaches its point.

visited = paths.t.tolist()
moments = [k for k in range(len(visited)) if visited[k] > 1e-4]
entropies = []
for k in moments:
    law = process.transition(0.0, visited[k])
    exponents = -0.5 * torch.cdist(law.root.inverse()(paths.x[k]), law.root.inverse()(law.mean(points))).square()
    weights = torch.softmax(exponents, 1)
    entropies.append(torch.special.entr(weights).sum(1))
bands = np.quantile(torch.stack(entropies).numpy(), (0.1, 0.5, 0.9), axis=1)

fig, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4.2), layout="constrained")
left.plot(*paths.x[:, :4].permute(2, 0, 1).double(), color="#0072B2", linewidth=0.6, alpha=0.7)
left.scatter(*points.T, s=40, color="#D55E00", zorder=3, label="data points")
left.scatter(*generated[:400].T, s=6, color="#333333", zorder=4, label="generated")
left.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title="Every path ends in a data point")
left.legend(fontsize=8, loc="lower left")
right.fill_between([visited[k] for k in moments], bands[0], bands[2], color="#0072B2", alpha=0.2, label="10–90 %")
right.plot([visited[k] for k in moments], bands[1], color="#0072B2", label="median path")
right.axhline(np.log(len(points)), color="#333333", linewidth=0.8, linestyle=":", label="log of the number of points")
right.set(xscale="log", xlabel="noising time $t$ (the reversal runs to the left)", ylabel="entropy (nats)")
right.set_title("How many points a state can still reach")
right.legend(frameon=False, fontsize=8)

# %%
# A network instead
# -----------------
# 300 points of the same distribution. The plot shows distances to the nearest training point; those of fresh points
# show what new points look like. The exact score returns copies (distances of rounding errors). The distances of the
# network are like those of fresh points. Not all of its points are good: some lie between the circles, and fewer after
# longer training.

train = datasets.make("circles", 300, seed=5)
fresh = datasets.make("circles", N, seed=6)
model = sb.diffuse(train, solver=sb.ScoreMatching(updates=UPDATES), seed=2)
noising, rows = model.reference, sb.Samples(train)
memory = sb.diffusion.reverse_diffusion(noising, rows, sb.ExactScore(noising, rows), grid=knots(200, 1e-6))
clouds = {
    "exact score": sb.generate(memory, N, seed=3),
    "trained network": sb.generate(model, N, seed=3),
    "fresh points": fresh,
}
fig, panels = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
styles = (("#D55E00", "-"), ("#0072B2", "-"), ("#333333", "--"))
for (name, cloud), (colour, style) in zip(clouds.items(), styles, strict=True):
    gaps = torch.cdist(cloud.double(), train.double()).amin(1).numpy()
    copies = float((gaps < 1e-3).mean())
    error = (copies * (1 - copies) / len(gaps)) ** 0.5
    print(f"{name:16s} median distance {np.median(gaps):.1e}; copies (within 1e-3) {copies:.3f} ± {error:.3f}")
    panels[2].plot(np.sort(gaps), np.linspace(0, 1, len(gaps)), color=colour, linestyle=style, label=name)
panels[2].set(
    xscale="log", xlim=(1e-9, 2), xlabel="distance to the nearest training point", ylabel="share below", box_aspect=1
)
panels[2].set_title("Copies and new points")
panels[2].legend(frameon=False, fontsize=8, loc="center")
for ax, name in zip(panels, ("exact score", "trained network"), strict=False):
    ax.scatter(*train.T, s=16, color="#B8B8B8", linewidths=0, label="training points")
    ax.scatter(*clouds[name][:1000].T, s=4, color="#0072B2", linewidths=0, label="generated")
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title=name)
fig.legend(*panels[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower left", ncols=2)

# %%
# With your own data
# -------------------
# To check whether your model copies, compute ``model = sb.diffuse(x, seed=0)`` and ``new = sb.generate(model, n,
# seed=1)``. Compare the distances of ``new`` to the nearest rows of ``x`` with those of held-out samples, as above. If
# the share of copies is higher than that of held-out samples, the network was trained for too long, or is too large,
# for so few samples.
