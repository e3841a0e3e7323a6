r"""Equal marginals, different joint distribution
=============================================

The reverse SDE and the probability-flow ODE of a diffusion have the same density at every single time. They are still
different processes: they disagree about where a path will be, given where it is now. This page compares the two on a
mixture in one dimension, where scores are exact (:class:`sbridge.ExactScore`). The quantiles through time agree, and
the joint distribution of two times does not (:class:`sbridge.PathMeasure`, :meth:`sbridge.Bridge.current_velocity`).
The SDE, not the ODE, is the time reversal of the noising process and has the same joint distribution.

With noising ``dX = f dt + g dW`` of density ``ρ``, reversed in time ``s = T − t``,

.. math:: \text{SDE:}\;\; dY = (-f + g^2 \nabla\log\rho)\, ds + g\, dB, \qquad
   \text{ODE:}\;\; \dot y = -f + \tfrac12 g^2 \nabla\log\rho .
"""

# sphinx_gallery_thumbnail_number = 3

import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge.metrics import ExactW2

FAST = "--fast" in sys.argv
N = 4000 if FAST else 20_000
KNOTS = 200

# %%
# One diffusion, three processes
# ------------------------------

process = sb.OrnsteinUhlenbeck(rate=1.0, sigma=2.0**0.5, horizon=1.0)
data = sb.GaussianMixture(
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
    means=torch.tensor([[-1.5], [1.2]], dtype=torch.float64),
    covariances=torch.tensor([[[0.05]], [[0.15]]], dtype=torch.float64),
)
exact = sb.ExactScore(process, data)
grid = sb.TimeGrid.uniform(KNOTS)
bridge = sb.diffusion.reverse_diffusion(process, data, exact, prior=exact.marginal(1.0), grid=grid)

noising = bridge.forward.sample(N, seed=0)
reversal = bridge.backward.sample(N, seed=1)

# %%
# The flow ``ẋ = v(t, x)`` is integrated backward from states of ``ρ_T`` by Heun's method on the same knots.

times = reversal.t.tolist()
states = [bridge.backward.starts(N, seed=2)]
for t, s in pairwise(times):
    x = states[-1]
    first = bridge.current_velocity(t, x)
    second = bridge.current_velocity(s, x + (s - t) * first)
    states.append(x + 0.5 * (s - t) * (first + second))
flow = torch.stack(states)

processes = {
    "noising": noising.x[..., 0],
    "reverse SDE": reversal.x.flip(0)[..., 0],
    "probability-flow ODE": flow.flip(0)[..., 0],
}
clock = np.linspace(0.0, 1.0, KNOTS + 1)

# %%
# At one time: no difference
# --------------------------
# Single paths look different: those of the SDE are rough, those of the ODE smooth. Quantiles over all paths are the
# same.

colours = {"noising": "#333333", "reverse SDE": "#0072B2", "probability-flow ODE": "#D55E00"}
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
for ax, name in zip(panels, ("reverse SDE", "probability-flow ODE"), strict=True):
    ax.plot(clock, processes[name][:, :60], color=colours[name], linewidth=0.5, alpha=0.5)
    ax.set(xlim=(1, 0), xlabel="time $t$, running back", title=name)
panels[0].set_ylabel("$x$")
fig.suptitle("Sixty paths of each")

levels = (0.05, 0.25, 0.5, 0.75, 0.95)
fig, ax = plt.subplots(figsize=(8.2, 4), layout="constrained")
for name, width, style in (("noising", 4, "-"), ("reverse SDE", 1.8, "-"), ("probability-flow ODE", 1.2, "--")):
    quantiles = np.quantile(processes[name].numpy(), levels, axis=1)
    lines = ax.plot(
        clock, quantiles.T, color=colours[name], linewidth=width, linestyle=style, alpha=0.3 if width == 4 else 1
    )
    lines[0].set_label(name)
ax.set(xlabel="time $t$", ylabel="$x$", title="Quantiles at 5, 25, 50, 75 and 95 % agree at every time")
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

# %%
# At two times: a different joint distribution
# --------------------------------------------
# States at ``t = 1`` and ``t = 0.3`` of the same path. The SDE gives the same cloud as the noising process. The ODE
# gives a curve: one state determines the other.

early, late = 0.3, 1.0
k = round(early * KNOTS)
fig, panels = plt.subplots(1, 3, figsize=(10, 3.7), layout="constrained", sharex=True, sharey=True)
for ax, (name, x) in zip(panels, processes.items(), strict=True):
    ax.scatter(x[-1, :3000], x[k, :3000], s=3, color=colours[name], alpha=0.4, linewidths=0)
    ax.set(xlim=(-4, 4), ylim=(-3.5, 3.5), xlabel=f"$X_t$, $t$ = {late:g}", title=name)
panels[0].set_ylabel(f"$X_t$, $t$ = {early:g}")
fig.suptitle("Joint distribution of two times")

# %%
# In numbers
# ----------
# The table shows the correlation of the two times with its standard error. It also shows W2 between pairs of states of
# each process and pairs of the noising process, as a mean over disjoint sets of samples with the standard deviation
# over these sets. The floor compares noising with noising. At single times all processes are at their floor; the pairs
# of the ODE are not.

SETS, MOST = 5, 400
metric = ExactW2(MOST)
again = bridge.forward.marginals([early, late], N, seed=3)[..., 0].T


def w2(rows):
    """Exact W2 to the noising process in disjoint sets of rows, mean and standard deviation."""
    sets = zip(rows.split(MOST)[:SETS], again[:, : rows.shape[1]].split(MOST)[:SETS], strict=True)
    values = [metric(x, y, torch.Generator().manual_seed(0)) for x, y in sets]
    return f"{np.mean(values):.3f} (s.d. {np.std(values, ddof=1):.3f})"


processes["floor"] = bridge.forward.marginals(clock, N, seed=4)[..., 0]
for name, x in processes.items():
    pairs = torch.stack([x[k], x[-1]], 1)
    correlation = float(torch.corrcoef(pairs.T)[0, 1])
    error = (1 - correlation**2) / N**0.5
    print(
        f"{name:21s} correlation {correlation:.4f} ± {error:.4f}; W2 of pairs {w2(pairs)}, "
        f"of the earlier state alone {w2(pairs[:, :1])}"
    )

# %%
# With your own data
# -------------------
# Your own model ``model = sb.diffuse(x, seed=0)`` has both processes: ``sb.generate(model, n, seed=1)`` uses the SDE,
# ``sampler=sb.samplers.FlowSampler()`` the ODE. Use either for samples at one time. Use the SDE
# (``model.backward.sample(n, seed=1)``) for anything that depends on two times: correlations, waiting times, fates.
