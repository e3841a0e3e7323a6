r"""Optimal control of a double well
================================

A particle starts on the barrier between two wells and has to end in one of them with the least effort. By symmetry half
of the optimal paths go to each side. Solvers that follow the first path they find get this wrong. The page defines the
problem (:class:`sbridge.ControlProblem`), learns a control (:class:`sbridge.LogVariance`), and compares it with the
solution of the Hamilton–Jacobi–Bellman equation on a grid (:func:`sbridge.pde.hamilton_jacobi_bellman`), which is exact
in one dimension up to the grid. :func:`sbridge.evaluate_control` prints the numbers; the first two need no exact
solution.

The control ``u`` minimises the mean of effort plus terminal cost ``g``:

.. math:: \min_u \; \mathbb E\Big[ \int_0^T \tfrac12 |u(t, X_t)|^2\, dt + g(X_T) \Big], \qquad
   dX = \big(-\Psi'(X) + u\big)\, dt + dW .
"""

# sphinx_gallery_thumbnail_number = 2

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

import sbridge as sb
from sbridge import pde, plotting

FAST = "--fast" in sys.argv
UPDATES = 250 if FAST else 1500
PATHS = 4096 if FAST else 16_384

# %%
# The problem
# -----------
# ``dX = (−Ψ' + u) dt + dW`` with ``Ψ = ½(x² − 1)²``, from ``x = 0``; terminal cost ``5(x² − 1)²``, and ``½u²`` per unit
# time.


def drift(t, x):
    """``−Ψ'``."""
    return -2.0 * x * (x.square() - 1.0)


def terminal_cost(x):
    """Zero in the wells."""
    return 5.0 * (x.square() - 1.0).square().sum(1)


process = sb.DriftProcess(drift, sigma=1.0, dimension=1)
problem = sb.ControlProblem(process, sb.Point(torch.zeros(1)), terminal_cost=terminal_cost)

# %%
# The exact solution, on a grid
# -----------------------------
# The least remaining cost ``J(t, x)`` solves ``∂J/∂t − Ψ'∂J/∂x + ½∂²J/∂x² = ½(∂J/∂x)²`` with ``J(T, x) = g(x)``. The
# optimal control is ``u* = −∂J/∂x``.

grid = pde.Grid.of(-2.5, 2.5, 400)
times = sb.TimeGrid.uniform(400)
value = pde.hamilton_jacobi_bellman(process, grid, terminal_cost, times)
best = -np.stack([grid.difference(J, 0) for J in value])
interpolated = RegularGridInterpolator(
    (np.linspace(0, 1, 401), grid.centres[0]), best, bounds_error=False, fill_value=None
)


def known(t, x):
    """``u*`` as a control."""
    moments = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
    found = interpolated(np.stack([moments.numpy(), x[:, 0].double().numpy()], -1))
    return torch.from_numpy(found).to(x).unsqueeze(1)


least = float(np.interp(0.0, grid.centres[0], value[0]))
print(f"least cost from the barrier, by the equation: {least:.4f}")

# %%
# A learned control
# -----------------
# The log-variance loss compares path weights and needs no gradient of the drift or the cost. That suits a start on a
# barrier, where gradients through the unstable drift grow fast along a path. With the features ``sin jx, cos jx`` the
# network can bend within the range of the data.

history = []
solver = sb.LogVariance(updates=UPDATES, network=sb.networks.FourierMLP(width=64), grid=sb.TimeGrid.uniform(60))
solution = sb.solve(
    problem, solver, seed=0, callbacks=[lambda state, info: history.append({"step": state.step, **info})]
)
report = sb.evaluate_control(solution, n=PATHS, seed=1, known=known)
print(f"cost of the learned control: {report.objective}")
print(f"least cost estimated from its path weights: {report.value}")
print(f"squared error of the control, relative: {report.control_error}")

# %%
# A chain of Euler steps does not have exactly the objective of continuous time, so the objective and the least cost
# differ a little even at the optimum.

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
plotting.history(history, ax=ax)
ax.set(ylabel="variance of the log weights", title="The loss falls towards zero")

# %%
# Paths with and without control
# ------------------------------

zero = sb.ControlSolution(problem, sb.PathMeasure(process, None, problem.start))
ways = {"no control": zero, "learned control": solution}
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
for ax, (name, way) in zip(panels, ways.items(), strict=True):
    paths = way.sample(PATHS, seed=2)
    ends = paths.x[-1, :, 0]
    effort = 0.5 * (paths.v.square().sum(2) * paths.t.diff().to(paths.v)[:, None]).sum(0)
    cost = effort + terminal_cost(paths.x[-1])
    bar = float(cost.std() / PATHS**0.5)
    left = float((ends < 0).float().mean())
    error = 0.5 / PATHS**0.5
    near = float((abs(abs(ends) - 1) < 0.3).float().mean())
    print(
        f"{name}: cost {cost.mean():.3f} ± {bar:.3f}; {left:.3f} ± {error:.3f} end on the left; "
        f"{near:.3f} end within 0.3 of a well"
    )
    plotting.trajectories(paths, ax=ax, most=80)
    ax.set(ylim=(-1.9, 1.9), ylabel="", title=f"{name}: cost {cost.mean():.2f}, {left:.0%} to the left")
panels[0].set_ylabel("$x$")
fig.suptitle("From the barrier into the wells")

# %%
# The control as a function
# -------------------------
# On the barrier the control is zero: it waits until the noise decides, and then pushes to that side. The network means
# nothing where no path goes, so the map is drawn only where the optimal process has mass.

line = grid.centres[0]
states = torch.from_numpy(line)[:, None].float()
clock = np.linspace(0, 0.99, 60)
with torch.no_grad():
    learned = np.stack([solution.control(float(t), states)[:, 0].numpy() for t in clock])
exact = np.stack([known(float(t), states)[:, 0].numpy() for t in clock])
visited = solution.measure.marginals(clock.tolist(), PATHS, seed=4)[..., 0].numpy()
low, high = np.quantile(visited, [0.001, 0.999], axis=1)
seen = (line >= low[:, None]) & (line <= high[:, None])
top = np.quantile(abs(exact[seen]), 0.99)
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
for ax, (name, control) in zip(panels, (("exact", exact), ("learned", learned)), strict=True):
    shown = np.where(seen, control, np.nan)
    image = ax.pcolormesh(clock, line, shown.T, cmap="RdBu_r", vmin=-top, vmax=top, shading="nearest")
    ax.set(ylim=(-1.9, 1.9), xlabel="time $t$", title=f"{name} control")
panels[0].set_ylabel("$x$")
fig.colorbar(image, ax=panels, label="$u(t, x)$")
fig.suptitle("Which way the control pushes")

# %%
# With your own data
# -------------------
# A problem is a process, a start and two functions of batches, ``running_cost(t, x)`` and ``terminal_cost(x)``, each
# with one number per row. For smooth costs try :class:`sbridge.AdjointMatching` first. For costs that jump or cannot be
# differentiated use :class:`sbridge.LogVariance`, as here. If no exact solution is known, compare ``objective`` with
# ``value`` in the output of :func:`sbridge.evaluate_control`: they are equal at the optimum. To solve a file with a
# variable ``problem`` from the command line, run ``sbridge control FILE.py``.
