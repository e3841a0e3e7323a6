"""Two moons to eight Gaussians
============================

A bridge between two built-in sets in six lines: fit (:func:`sbridge.fit`), transport, predict half way, and judge
against rows that were held out (:func:`sbridge.evaluate`). The table sets every number beside its floor, which is what
perfect samples of the same size would score, and beside transport maps fitted on the same rows.
"""

import sys

import matplotlib.pyplot as plt

import sbridge as sb
from sbridge import datasets, plotting

FAST = "--fast" in sys.argv
ROWS, HELD_OUT = (2000, 500) if FAST else (4000, 1000)
solver = sb.IMF(pretraining=800, stages=2, updates=400) if FAST else sb.IMF()

# %%
# Fit
# ---
# Without ``reference=`` the noise level is chosen from the data, without ``solver=`` the solver from the ends; both
# choices can be looked at.

x0 = datasets.make("two_moons", ROWS + HELD_OUT, seed=0)
x1 = datasets.make("eight_gaussians", ROWS + HELD_OUT, seed=1)
bridge = sb.fit(x0[:ROWS], x1[:ROWS], solver=solver, seed=0)
print(sb.choose_sigma(x0[:ROWS], x1[:ROWS]))
print(solver)

# %%
# Paths
# -----

fig, ax = plt.subplots(figsize=(6, 5), layout="compressed")
plotting.trajectories(bridge.forward.sample(200, seed=2), ax=ax)
ax.set_title("Paths of the bridge")

# %%
# The law through time, and the drift
# -----------------------------------

fig, ax = plt.subplots(figsize=(10, 2.8))
plotting.marginals(bridge, seed=3, ax=ax)
fig.suptitle("The law of the state (grey: the data at either end)")

fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.drift_field(bridge, [0.1, 0.5, 0.9], seed=4, ax=ax)
fig.suptitle("Where the bridge drives its paths")

# %%
# New rows
# --------
# ``transport`` draws an end for every row given, ``interpolate`` a state in between, ``conditional_mean`` the mean end.

rows = x0[ROWS:]
ends, half_way = bridge.transport(rows, seed=5), bridge.interpolate(rows, 0.5, seed=5)
print("mean of the rows:", rows.mean(0), "half way:", half_way.mean(0), "at the end:", ends.mean(0))

fig, ax = plt.subplots(figsize=(5.6, 5), layout="constrained")
plotting.coupling(rows, ends, ax=ax)
fig.suptitle("Held-out rows and where one draw takes them")

# %%
# Is it any good?
# ---------------

print(sb.evaluate(bridge, x0[ROWS:], x1[ROWS:], seed=1).text())
