r"""A smooth course through snapshots
=================================

Snapshots of moving particles show positions, not velocities. A chain of bridges treats each pair of snapshots alone,
so its paths turn at the snapshots: a particle that is fast before a snapshot has no velocity left after it. If the
particles have momentum, the reference should have it too. This page takes the underdamped Langevin process
(:class:`sbridge.processes.UnderdampedLangevin`),

.. math:: dx = v\,dt, \qquad dv = -\gamma v\,dt + \sigma\,dW,

and asks for the law of paths closest to it whose positions pass all snapshots at once
(:class:`sbridge.exact.GaussianMomentumCourse`). Without friction its mean path is the natural cubic spline.
"""

# sphinx_gallery_thumbnail_number = 1

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import plotting
from sbridge.exact import GaussianMomentumCourse
from sbridge.processes import UnderdampedLangevin

FAST = "--fast" in sys.argv
ROWS, STEPS = (500, 100) if FAST else (4000, 200)

# %%
# Snapshots
# ---------
# A cloud goes round a spring that pulls it to the origin: a process with momentum as well, which the fits below do not
# know. It is seen at five times.

times = [0.0, 1.0, 2.0, 3.0, 4.0]
world = UnderdampedLangevin(friction=0.05, sigma=0.15, stiffness=1.4, horizon=4.0, positions=2)
start = sb.Gaussian(torch.tensor([2.0, 0.0, 0.0, 2.0]), torch.diag(torch.tensor([0.06, 0.02, 0.02, 0.06])))
truth = sb.PathMeasure(world, None, start, grid=sb.TimeGrid.uniform(16))
paths = truth.sample(ROWS, seed=0)
snapshots = [paths.x[paths.t == t][0, :, :2] for t in times]

# %%
# Two courses
# -----------
# Both see only the snapshots. Each leg of the chain is a Gaussian bridge of Brownian motion. The course with momentum
# has one noise level too; a free initial velocity needs no choice.

chain = sb.fit_course(snapshots, times, sigma=0.3, solver=sb.GaussianBridge())
free = UnderdampedLangevin(friction=0.0, sigma=0.5, horizon=4.0, positions=2)
smooth = GaussianMomentumCourse.of_rows(snapshots, times, free)

drawn = smooth.forward(sb.TimeGrid.uniform(STEPS)).sample(60, seed=1)
positions = plotting.Projection(np.zeros(4), np.eye(4)[:, :2], ("$x_1$", "$x_2$"), (0.5, 0.5))
fig, panels = plt.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained")
plotting.course_trajectories(chain, snapshots[0][:60], seed=1, ax=panels[0])
plotting.trajectories(drawn, ax=panels[1], projection=positions)
for ax, title in zip(panels, ("A chain of bridges", "A course with momentum"), strict=True):
    for rows in snapshots:
        ax.scatter(*rows[:60].T, s=4, color="0.4", zorder=0)
    ax.set(xlim=(-3, 3), ylim=(-3, 3), title=title)

# %%
# Between the snapshots
# ---------------------
# The law of positions at any other time is a prediction. Here it is compared with the cloud at times that no course
# has seen, by the Bures–Wasserstein distance of means and covariances. The triangles compare two halves of the cloud.
# The course with momentum is least accurate in the first and the last leg, because a natural spline has no curvature at
# its ends, and the orbit has.


def distance(one, other):
    """Bures–Wasserstein distance of two pairs of mean and covariance."""
    return sb.metrics.bures_squared(one[0], other[0], one[1], other[1]) ** 0.5


def moments(rows):
    """Mean and covariance of rows."""
    rows = rows.double()
    return rows.mean(0), rows.mT.cov()


clock = [t for t in paths.t.tolist() if t not in times]
errors = {"chain of bridges": [], "course with momentum": [], "two halves of the cloud": []}
for t in clock:
    rows = paths.x[paths.t == t][0, :, :2]
    leg = chain.interpolate(snapshots[int(t)], float(int(t)), t, seed=2)
    law = smooth.law(t)
    errors["chain of bridges"].append(distance(moments(rows), moments(leg)))
    errors["course with momentum"].append(distance(moments(rows), (law.mean[:2], law.covariance[:2, :2])))
    errors["two halves of the cloud"].append(distance(moments(rows[::2]), moments(rows[1::2])))

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for (name, values), marker in zip(errors.items(), "osv", strict=True):
    ax.plot(clock, values, marker, linestyle="none", label=name)
    print(f"{name}: mean distance {np.mean(values):.3f}, largest {max(values):.3f}")
ax.set(xlabel="time $t$", ylabel="distance from the cloud", ylim=(0, None), xticks=times)
ax.legend(frameon=False)

# %%
# One particle
# ------------
# A course also answers for single rows: their velocity has a law given their position, and where they are at any other
# time follows from both, forwards and backwards.

row = snapshots[2][:1]
for t in (1.5, 2.0, 2.5):
    states = smooth.interpolate(row.expand(2000, 2), 2.0, t, seed=3)
    mean, spread = states.mean(0).tolist(), states.std(0).tolist()
    print(f"t = {t}: x = ({mean[0]:.2f}, {mean[1]:.2f}) ± {spread[0]:.2f}, v = ({mean[2]:.2f}, {mean[3]:.2f})")

# %%
# With your own data
# -------------------
# ``GaussianMomentumCourse.of_rows(arrays, times, process)`` takes one array of positions for each time. It uses means
# and covariances only, so a cloud of several parts needs another method. ``sigma`` is the size of random accelerations,
# in units of the data per time to the power 3/2: with a small one each path is close to a cubic spline, and with a
# large one velocities are soon forgotten. With friction, ``speed`` may be the stationary
# ``sigma / (2 * friction) ** 0.5``.
