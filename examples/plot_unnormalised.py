r"""Sampling an unnormalised density
================================

Only the energy ``E`` of a density ``e^{−E}/Z`` can be computed; there are no samples, and ``Z`` is unknown. To steer
Brownian motion so that it ends in that density is an optimal control problem (:func:`sbridge.sampling_problem`). Its
solution draws samples, and path weights give ``log Z`` with an error bar (:func:`sbridge.log_normaliser`). In the plane
quadrature gives ``Z``, and with it every error.

Let ``r`` be the end density of the uncontrolled process. The problem and its optimal value are

.. math:: \min_u \; \mathbb E\Big[ \int_0^T \tfrac12 |u|^2\, dt + E(X_T) + \log r(X_T) \Big] = -\log Z .
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import plotting

FAST = "--fast" in sys.argv
UPDATES = 300 if FAST else 2000
N = 4000 if FAST else 20_000

# %%
# The density
# -----------
# A ring with three deep minima of the energy, far from Gaussian.


def log_density(x):
    """``−E(x)``."""
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    return -4.0 * (radius - 2.0).square() + 1.2 * torch.cos(3.0 * angle)


target = sb.Density(log_density, dimension=2)

# %%
# Steering towards it
# -------------------
# Brownian motion starts at the origin and is wide enough to reach all of the ring. :class:`sbridge.LogVariance` needs
# the energy only at end states, and not its gradient; :class:`sbridge.AdjointMatching` and others solve the same
# problem. In the printed table, ``objective`` is the cost of the learned control and ``value`` an estimate of the least
# cost; ``gap`` is their difference, zero at the optimum.

start = sb.Point(torch.zeros(2))
process = sb.BrownianMotion(sigma=2.0)
problem = sb.sampling_problem(target, process, start)
network = sb.networks.FourierMLP(width=64, frequency=0.5)
solver = sb.LogVariance(updates=UPDATES, network=network, grid=sb.TimeGrid.uniform(50))
solution = sb.solve(problem, solver, seed=0)
print(sb.evaluate_control(solution, n=N, seed=1))

# %%
# ``log Z``
# ---------
# The page computes it in three ways: by quadrature on a fine grid; by importance sampling from the end distribution of
# the uncontrolled process; and from the paths of the learned control, whose lower bound is the mean of the log weights.

side = np.linspace(-4, 4, 801)
plane = torch.tensor(np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2))
density = log_density(plane).exp().numpy().reshape(801, 801)
log_z = float(np.log(density.sum() * (side[1] - side[0]) ** 2))
density /= np.exp(log_z)
print(f"quadrature: log Z = {log_z:.4f}")

free = sb.ControlSolution(problem, sb.PathMeasure(process, None, start, grid=solver.grid))
answers = {}
for name, way in (("no control", free), ("learned control", solution)):
    answers[name] = sb.log_normaliser(way, N, seed=2)
    print(f"{name}: log Z = {answers[name].log_normaliser}")
    print(f"{'':{len(name)}}  lower bound {answers[name].lower_bound}")

# %%
# Samples
# -------
# The samples are the ends of controlled paths, before and after weighting. Moments by quadrature show whether they are
# right.

found = answers["learned control"]
angles = torch.atan2(found.x[:, 1], found.x[:, 0]).numpy()
radii = found.x.norm(dim=1).numpy()
weights = found.weights.values.numpy()
mesh = plane.numpy()
mass = density.ravel() * (side[1] - side[0]) ** 2
functions = {
    "|x|": (radii, np.linalg.norm(mesh, axis=1)),
    "cos 3φ": (np.cos(3 * angles), np.cos(3 * np.arctan2(mesh[:, 1], mesh[:, 0]))),
}
for name, (values, truth) in functions.items():
    mean = weights @ values
    error = np.sqrt((weights**2) @ (values - mean) ** 2)
    plain, bar = values.mean(), values.std() / N**0.5
    print(f"E {name}: exact {mass @ truth:.4f}; weighted {mean:.4f} ± {error:.4f}; unweighted {plain:.4f} ± {bar:.4f}")

fig, panels = plt.subplots(1, 3, figsize=(10.4, 3.8), layout="compressed", sharex=True, sharey=True)
panels[0].pcolormesh(side[::4], side[::4], density[::4, ::4].T, cmap="Blues", shading="gouraud")
panels[0].set_title("the density")
plotting.trajectories(solution.sample(60, seed=3), ax=panels[1], most=60)
panels[1].set_title("controlled paths (blue to orange)")
for bar in panels[1].child_axes:
    bar.set_visible(False)
panels[2].scatter(*found.x[:3000].T, s=3, color="#D55E00", linewidths=0, alpha=0.5)
panels[2].set_title("their ends")
for ax in panels:
    ax.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal", xlabel="$x_1$", ylabel="")
panels[0].set_ylabel("$x_2$")
fig.suptitle("From a point to an unnormalised density")

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
edges = np.linspace(-np.pi, np.pi, 61)
exact = np.exp(1.2 * np.cos(3 * edges))
ax.hist(angles, edges, density=True, color="#0072B2", alpha=0.25, label="unweighted")
ax.hist(angles, edges, weights=weights, density=True, histtype="step", color="#D55E00", label="weighted")
ax.plot(edges, exact / (exact[:-1].mean() * 2 * np.pi), color="#333333", linewidth=1, label="exact")
ax.set(xlabel="angle φ", ylabel="density", title="Distribution of the angle")
ax.set_ylim(0, 0.52)
ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")

# %%
# With your own data
# -------------------
# Write ``log_density`` for batches, with one number per row and without its constant, and give its dimension. The
# process must reach all of the mass: choose ``sigma`` about as large as the radius of the density. Then look at the
# effective number of samples next to ``log Z``. If it is a small part of ``n``, train longer (``updates=``) or widen
# the network. If the other end is a data set and not a point, see the densities in :doc:`/solvers`.
