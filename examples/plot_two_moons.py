r"""Two moons to eight Gaussians
============================

A bridge between two built-in data sets in six lines: fit (:func:`sbridge.fit`), transport, predict half way, and
evaluate on held-out samples (:func:`sbridge.evaluate`). The table compares every number with its floor, the score of
perfect samples of the same size, and with transport maps fitted on the same samples.

The bridge is the distribution of paths ``P`` that is closest to Brownian motion ``R`` among all that lead from one data
set to the other:

.. math:: \min_P \mathrm{KL}(P \,\|\, R), \qquad P_0 = p_0, \quad P_T = p_1 .
"""

import sys

import matplotlib.pyplot as plt

import sbridge as sb
from sbridge import datasets, plotting

FAST = "--fast" in sys.argv
ROWS, HELD_OUT = (2000, 500) if FAST else (4000, 1000)

# %%
# Fit
# ---
# Without ``reference=`` the noise level σ is chosen from the data (:doc:`/sigma`). Without ``solver=`` the solver is
# chosen from the ends (:doc:`/solvers`): here a mixture of Gaussians as potential (:class:`sbridge.MixtureBridge`).

x0 = datasets.make("two_moons", ROWS + HELD_OUT, seed=0)
x1 = datasets.make("eight_gaussians", ROWS + HELD_OUT, seed=1)
bridge = sb.fit(x0[:ROWS], x1[:ROWS], seed=0)
print(sb.choose_sigma(x0[:ROWS], x1[:ROWS]))

# %%
# Paths
# -----
# Every path starts at a sample of the first set (blue) and ends in the second (orange). The paths are rough, since the
# noise of the reference is part of the model.

fig, ax = plt.subplots(figsize=(6, 5), layout="compressed")
plotting.trajectories(bridge.forward.sample(200, seed=2), ax=ax)
ax.set_title("Paths of the bridge")

# %%
# The distribution through time, and the drift
# --------------------------------------------
# The first plot shows states at five times. The second shows the drift ``σu`` at three times, as arrows at the states.

fig, ax = plt.subplots(figsize=(10, 2.8))
plotting.marginals(bridge, seed=3, ax=ax)
fig.suptitle("Distribution of the state at five times")

fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.drift_field(bridge, [0.1, 0.5, 0.9], seed=4, ax=ax)
fig.suptitle("Drift of the bridge")

# %%
# New samples
# -----------
# ``transport`` draws an end point for every given sample, ``interpolate`` a state in between. ``conditional_mean``
# returns the mean end point.

rows = x0[ROWS:]
ends, half_way = bridge.transport(rows, seed=5), bridge.interpolate(rows, 0.5, seed=5)
for name, cloud in (("rows", rows), ("half way", half_way), ("at the end", ends), ("held-out target", x1[ROWS:])):
    means = (f"{m:+.2f} ± {s / len(cloud) ** 0.5:.2f}" for m, s in zip(cloud.mean(0), cloud.std(0), strict=True))
    print(f"{name:16s} mean {', '.join(means)} (s.e.)")

fig, ax = plt.subplots(figsize=(5.6, 5), layout="constrained")
plotting.coupling(rows, ends, ax=ax)
fig.suptitle("Held-out samples and one draw of their end points")

# %%
# Is it any good?
# ---------------
# Compare the row ``bridge`` with ``perfect samples`` (the floor) and with ``unmoved rows``. A value below the floor is
# chance: look at the standard errors. :doc:`/trust` explains each part.

print(sb.evaluate(bridge, x0[ROWS:], x1[ROWS:], seed=1).text())

# %%
# With your own data
# -------------------
# Use two arrays as ``x0`` and ``x1``, with one sample per row and the same columns in both: ``np.load("before.npy")``,
# or the ``.to_numpy()`` of a table. They need not be paired, nor have the same length. Keep some samples of each for
# :func:`sbridge.evaluate`. From the command line, with a report as one HTML page: ``sbridge fit before.npy after.npy
# --out run``, then ``sbridge report run``.
