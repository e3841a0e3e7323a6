r"""Single cells over time: predicting a time point that was left out
==================================================================

A sequencing experiment destroys the cells that it measures, so a time course is a series of unpaired snapshots. Bridges
between consecutive snapshots (:func:`sbridge.fit_course`) turn them into paths. The test is a time point that the
bridges have not seen. :func:`sbridge.evaluation.score_at` predicts its cells and compares the distance with a floor,
with unmoved cells, and with straight lines of optimal transport. The last part shows what snapshots alone cannot show:
where the descendants of a single early cell end up.

Between the snapshots ``p_k`` at times ``t_k`` each bridge solves, with a Brownian reference ``R``,

.. math:: \min_P \mathrm{KL}(P \,\|\, R), \qquad P_{t_k} = p_k, \quad P_{t_{k+1}} = p_{k+1} .

Set ``SBRIDGE_CELLS`` to a file of your own: an ``.npz`` with an array ``x`` (cells × features, for example principal
components) and an array ``time`` (one number per cell, at least three different ones). Without it the page uses a
*synthetic* branching course: counts of genes that are switched by a hidden process with one fork. It is not biological
data.
"""

# sphinx_gallery_thumbnail_number = 3

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import plotting
from sbridge.evaluation import score_at

FAST = "--fast" in sys.argv
FILE = os.environ.get("SBRIDGE_CELLS")
CELLS = 300 if FAST else 1500  # per time point of the stand-in

# %%
# Snapshots
# ---------
# In the synthetic course a hidden state moves along its first coordinate and falls into one of two branches of the
# second. Forty genes respond to it. They are counted with Poisson noise and transformed by the usual logarithm and
# principal components.


def stand_in(times, cells, components=5):
    """Rows of principal components and their times."""

    def drift(t, x):
        fork = 6.0 * (x[:, :1] - 1.0).clamp(0, 1) * x[:, 1:] - 4.0 * x[:, 1:] ** 3
        return torch.cat([torch.full_like(fork, 1.0), fork], 1)

    hidden = sb.DriftProcess(drift, sigma=torch.tensor([0.12, 0.35]), horizon=max(times))
    start = sb.Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.02, 0.03])))
    measure = sb.PathMeasure(hidden, None, start, grid=sb.TimeGrid.uniform(100))
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(0, 1.0, (2, 40)), rng.normal(1.0, 0.5, 40)
    # other cells at every time: a cell is measured once
    states = np.concatenate([measure.marginals([t], cells, seed=k)[0].numpy() for k, t in enumerate(times)])
    counts = rng.poisson(np.exp(np.clip((np.array([0.8, 1.2]) * np.tanh(states / 2)) @ weights + bias, None, 5)))
    logs = np.log1p(counts)
    centred = logs - logs.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:components]
    return centred @ directions.T, np.repeat(times, cells)


if FILE:
    with np.load(FILE) as file:
        x, time = file["x"], file["time"]
    print(f"{len(x)} cells of {FILE}")
else:
    x, time = stand_in([0.0, 1.0, 2.0, 3.0], CELLS)
    print(f"{len(x)} cells of a synthetic course")
times = sorted(set(time.tolist()))
snapshots = {t: torch.from_numpy(x[time == t]).float() for t in times}
print({t: tuple(rows.shape) for t, rows in snapshots.items()})

plane = plotting.Projection.fit(snapshots[times[0]], torch.cat(list(snapshots.values())))
colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(times)))
fig, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
for t, colour in zip(times, colours, strict=True):
    ax.scatter(*plane(snapshots[t]).T, s=5, color=colour, linewidths=0, alpha=0.6, label=f"$t$ = {t:g}")
ax.set(xlabel=plane.labels[0], ylabel=plane.labels[1], title="Snapshots")
ax.legend(frameon=False, fontsize=8, markerscale=2)

# %%
# Leave one time point out
# ------------------------
# The middle time point is left out: the bridge runs from the snapshot before it to the snapshot after it. The table
# counts time from the earlier one. The synthetic course shows a limit of two snapshots: a bridge moves at a constant
# pace between its ends, but most of the movement of these cells was over by then. So the score of the bridge is that of
# straight lines of optimal transport (``exact OT map``): far better than that of unmoved cells, and above the floor. A
# better prediction needs another snapshot in between, or a reference with the right pace.

middle = len(times) // 2
before, out, after = times[middle - 1 : middle + 2]
course = sb.fit_course([snapshots[before], snapshots[after]], [before, after], seed=0)
report = score_at(course.bridges[0], snapshots[before], snapshots[out], out - before, seed=1)
print(report.text())

predicted = course.interpolate(snapshots[before], before, out, seed=2)
fig, panels = plt.subplots(1, 2, figsize=(9.4, 4), layout="constrained", sharex=True, sharey=True)
clouds = {"predicted": predicted, "measured, never seen by the bridges": snapshots[out]}
for ax, (name, rows) in zip(panels, clouds.items(), strict=True):
    layers = (
        (before, snapshots[before], "#0072B2", 0.3),
        (out, rows, "#333333", 0.6),
        (after, snapshots[after], "#D55E00", 0.3),
    )
    for t, cloud, colour, alpha in layers:
        ax.scatter(*plane(cloud).T, s=5, color=colour, linewidths=0, alpha=alpha, label=f"$t$ = {t:g}")
    ax.set(xlabel=plane.labels[0], title=name)
panels[0].set_ylabel(plane.labels[1])
panels[0].legend(frameon=False, fontsize=8, markerscale=2)
fig.suptitle(f"Time {out:g} from its neighbours")

# %%
# Fates
# -----
# This part uses all snapshots. The last one is divided into two groups (two means). :func:`sbridge.fates` gives every
# early cell the probability that its paths end in each group, with an interval. The interval is about the number of
# paths alone. Such probabilities depend on σ: on how random the course of a cell is beyond what transport needs.
# Snapshots do not determine it. The default σ is small; this page uses twice the default and prints it. A cell counts
# as decided if its probability is below 0.1 or above 0.9.

sigma = 2 * sb.choose_sigma(snapshots[before], snapshots[after], horizon=after - before).sigma
print(f"sigma = {sigma:.3f} per root of the time unit")
full = sb.fit_course([snapshots[t] for t in times], times, sigma=sigma, seed=3)
last = snapshots[times[-1]]
axis = torch.linalg.svd(last - last.mean(0), full_matrices=False).Vh[0]
centres = torch.stack([last[(last - last.mean(0)) @ axis < 0].mean(0), last[(last - last.mean(0)) @ axis >= 0].mean(0)])
for _ in range(20):
    group = torch.cdist(last, centres).argmin(1)
    centres = torch.stack([last[group == k].mean(0) for k in range(2)])
labels = ["first" if k == 0 else "second" for k in group]

fig, panels = plt.subplots(1, 3, figsize=(10.4, 3.8), layout="constrained", sharex=True, sharey=True)
for ax, t in zip(panels, times, strict=False):
    found = sb.fates(full, labels, times=(t, times[-1]), draws=24 if FAST else 100, seed=4)
    fate = found.probabilities[:, 0]
    decided = float(((fate < 0.1) | (fate > 0.9)).float().mean())
    print(found, f"below 0.1 or above 0.9: {decided:.0%} of the cells", sep="\n")
    ax.scatter(*plane(last).T, s=3, color="#D0D0D0", linewidths=0)
    image = ax.scatter(*plane(snapshots[t]).T, s=8, c=fate, cmap="coolwarm", vmin=0, vmax=1, linewidths=0)
    ax.set(xlabel=plane.labels[0], title=f"cells at $t$ = {t:g}: {decided:.0%} decided")
panels[0].set_ylabel(plane.labels[1])
fig.colorbar(image, ax=panels, label="probability of the first group")
fig.suptitle("Where cells will end (grey: the last snapshot)")

# %%
# With your own data
# -------------------
# ``SBRIDGE_CELLS=mine.npz python plot_cells.py`` runs this page on your file. Use principal components (ten to fifty),
# not raw counts. All bridges of a course share one σ if ``sigma=`` (``--sigma``) is given; otherwise each bridge
# chooses σ from its two snapshots. The command line reads ``.h5ad`` files (after ``pip install -c constraints.txt
# '.[bio]'``): ``sbridge fit cells.h5ad --time-key day --out run`` fits the whole course. ``sbridge fit day2.npy
# day6.npy --times 2 6 --out run`` and ``sbridge evaluate run day2.npy day4.npy --time 4`` leave day 4 out. Before you
# interpret fates, vary σ (:doc:`/sigma`).
