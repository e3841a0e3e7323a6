r"""Two moons to eight Gaussians
============================

A bridge between two built-in sets in six lines: fit (:func:`sbridge.fit`), transport, predict half way, and judge
against rows that were held out (:func:`sbridge.evaluate`). The table sets every number beside its floor, which is what
perfect samples of the same size would score, and beside transport maps fitted on the same rows.

The bridge is the law of paths ``P`` that is closest to Brownian motion ``R`` among all that lead from one set to the
other:

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
# Without ``reference=`` the noise level σ is chosen from the data (:doc:`/sigma`), without ``solver=`` the solver from
# the ends (:doc:`/solvers`): here a mixture of Gaussians as potential (:class:`sbridge.MixtureBridge`).

x0 = datasets.make("two_moons", ROWS + HELD_OUT, seed=0)
x1 = datasets.make("eight_gaussians", ROWS + HELD_OUT, seed=1)
bridge = sb.fit(x0[:ROWS], x1[:ROWS], seed=0)
print(sb.choose_sigma(x0[:ROWS], x1[:ROWS]))

# %%
# Paths
# -----
# Every path starts at a row of the first set (blue) and ends in the second (orange). They are rough: the noise of the
# reference is part of the model.

fig, ax = plt.subplots(figsize=(6, 5), layout="compressed")
plotting.trajectories(bridge.forward.sample(200, seed=2), ax=ax)
ax.set_title("Paths of the bridge")

# %%
# The law through time, and the drift
# -----------------------------------
# States at five times; then the drift ``σu`` at three, as arrows on the states that are there.

fig, ax = plt.subplots(figsize=(10, 2.8))
plotting.marginals(bridge, seed=3, ax=ax)
fig.suptitle("The law of the state at five times")

fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.drift_field(bridge, [0.1, 0.5, 0.9], seed=4, ax=ax)
fig.suptitle("Where the bridge drives its paths")

# %%
# New rows
# --------
# ``transport`` draws an end for every row given, ``interpolate`` a state in between, ``conditional_mean`` the mean end.

rows = x0[ROWS:]
ends, half_way = bridge.transport(rows, seed=5), bridge.interpolate(rows, 0.5, seed=5)
for name, cloud in (("rows", rows), ("half way", half_way), ("at the end", ends), ("held-out target", x1[ROWS:])):
    means = (f"{m:+.2f} ± {s / len(cloud) ** 0.5:.2f}" for m, s in zip(cloud.mean(0), cloud.std(0), strict=True))
    print(f"{name:16s} mean {', '.join(means)} (s.e.)")

fig, ax = plt.subplots(figsize=(5.6, 5), layout="constrained")
plotting.coupling(rows, ends, ax=ax)
fig.suptitle("Held-out rows and where one draw takes them")

# %%
# Is it any good?
# ---------------
# Compare the row ``bridge`` with ``perfect samples`` (the floor) and with ``unmoved rows``. A value below the floor is
# chance: look at the standard errors. :doc:`/trust` says what each part means and what it does not.

print(sb.evaluate(bridge, x0[ROWS:], x1[ROWS:], seed=1).text())

# %%
# With your own data
# -------------------
# Put two arrays in the place of ``x0`` and ``x1``, a row per sample and the same columns in both:
# ``np.load("before.npy")``, or a table's ``.to_numpy()``. They need not be paired nor of equal length. Keep some rows
# of each for :func:`sbridge.evaluate`. From the command line, with a report as one HTML page: ``sbridge fit before.npy
# after.npy --out run``, then ``sbridge report run``.
