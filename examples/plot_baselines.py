r"""A bridge compared with optimal-transport maps
=============================================

Anyone with two data sets can compute an optimal-transport map in a minute. What does a Schrödinger bridge add? This
page fits a bridge between two distributions in the plane. :func:`sbridge.evaluate` compares it with the exact map, the
entropic map and the Gaussian map, fitted on the same samples, and scores all of them on held-out samples. Floors show
the score of perfect samples, and pictures show what the numbers mean.

Both methods solve a transport problem. The maps minimise the mean cost of a coupling ``π`` of the two ends. The bridge
adds an entropy, weighted by the noise of its reference:

.. math:: \min_\pi \; \mathbb E_\pi \tfrac12 |x - y|^2 + \varepsilon\, \mathrm{KL}(\pi \,\|\, p_0 \otimes p_1),
   \qquad \varepsilon = \sigma^2 T .
"""

# sphinx_gallery_thumbnail_number = 2

import sys

import matplotlib.pyplot as plt
import torch

import sbridge as sb
from sbridge import datasets
from sbridge.transport import entropic_map, exact_map, gaussian_map

FAST = "--fast" in sys.argv
ROWS, HELD_OUT = (1500, 500) if FAST else (4000, 2000)

# %%
# Fit
# ---

x0 = datasets.make("circles", ROWS + HELD_OUT, seed=0)
x1 = datasets.make("eight_gaussians", ROWS + HELD_OUT, seed=1)
fit0, fit1, test0, test1 = x0[:ROWS], x1[:ROWS], x0[ROWS:], x1[ROWS:]
bridge = sb.fit(fit0, fit1, seed=2)
sigma = sb.choose_sigma(fit0, fit1)
print(sigma)

# %%
# Evaluate
# --------

report = sb.evaluate(bridge, test0, test1, seed=3)
print(report.text())

# %%
# The plot shows the same scores with standard errors: the distance between transported samples and held-out samples of
# the target. The bars of unmoved samples leave the panels, so their values are written there.

(task,) = (task for task in report.tasks if task.name == "forward")
columns = [column.name for column in report.columns if column.name in ("W2", "sliced W2", "energy distance")]
colours = ["#0072B2" if "bridge" in one else "#B8B8B8" for one in task.candidates]
fig, panels = plt.subplots(1, len(columns), figsize=(10, 3.6), layout="constrained", sharey=True)
for ax, column in zip(panels, columns, strict=True):
    scores = [report.score("forward", candidate, column) for candidate in task.candidates]
    ax.barh(range(len(scores)), [s.value for s in scores], xerr=[s.standard_error for s in scores], color=colours)
    (floor,) = (s.value for s in scores if "perfect" in s.candidate)
    ax.axvline(floor, color="#333333", linestyle=":", linewidth=1)
    largest = max(s.value for s in scores if "unmoved" not in s.candidate)
    right = 1.6 * largest
    for k, score in enumerate(scores):
        if score.value > right:
            ax.annotate(f"{score.value:.2f} →", (0.97 * right, k), ha="right", va="center")
    ax.set(xlim=(0, right), xlabel=f"{column} (dotted: floor)")
panels[0].set_yticks(range(len(task.candidates)), task.candidates)
panels[0].invert_yaxis()
fig.suptitle("Distance to held-out samples of the target, smaller is better")

# %%
# What the maps do to new samples
# -------------------------------
# The exact map takes the nearest neighbour of a new sample and returns the image of that neighbour, so its images are
# copies. The entropic map returns the mean of the possible images, so its distribution is too narrow. The Gaussian map
# matches two moments. The bridge draws a new end point for every sample.

images = {
    "bridge": bridge.transport(test0, seed=4),
    "exact OT map": exact_map(fit0, fit1)(test0),
    "entropic map": entropic_map(fit0, fit1, sigma.epsilon)(test0),
    "Gaussian map": gaussian_map(fit0, fit1)(test0),
}
fig, panels = plt.subplots(1, 4, figsize=(11, 3.9), layout="constrained", sharex=True, sharey=True)
for ax, (name, rows) in zip(panels, images.items(), strict=True):
    copies = float((torch.cdist(rows.double(), fit1.double()).amin(1) < 1e-5).double().mean())
    print(f"{name:14s} {copies:.0%} of the images are training samples")
    ax.scatter(*test1.T, s=4, color="#B8B8B8", linewidths=0)
    ax.scatter(*rows.T, s=4, color="#D55E00", linewidths=0)
    ax.set(aspect="equal", xlabel="$x_1$", title=f"{name}\n{copies:.0%} copies")
panels[0].set_ylabel("$x_2$")
fig.suptitle("Images of held-out samples (grey: held-out samples of the target)")

# %%
# What a map cannot give
# ----------------------
# A map gives one end point for each sample. A bridge gives the distribution of the end point, and of every state in
# between.

one = test0[:1].repeat(300, 1)
paths = bridge.forward.simulate(one, seed=5)
fig, ax = plt.subplots(figsize=(5.6, 4.8), layout="constrained")
ax.scatter(*test1.T, s=4, color="#E0E0E0", linewidths=0)
ax.plot(*paths.x[:, :60].permute(2, 0, 1), color="#0072B2", linewidth=0.4, alpha=0.6)
ax.scatter(*paths.x[-1].T, s=8, color="#D55E00", linewidths=0, label="ends of 300 paths")
for (name, rows), marker in zip(list(images.items())[1:], "s^D", strict=True):
    ax.scatter(*rows[0], s=50, marker=marker, color="#333333", label=name, zorder=4)
ax.scatter(*test0[0], s=160, marker="*", color="#0072B2", edgecolors="white", label="the sample", zorder=5)
ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", title="One sample: a distribution of ends, or a point")
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

# %%
# With your own data
# -------------------
# ``x0`` and ``x1`` may be any two arrays with one sample per row and the same columns. :func:`sbridge.evaluate` fits
# the maps on the samples that the bridge was fitted on, so the comparison is fair without further code. If a map has a
# better score than the bridge in every column, the noise is too large for your data: see :doc:`/sigma`.
