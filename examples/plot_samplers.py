r"""Samplers at equal cost
======================

All samplers of a diffusion model solve one of two equations, the reverse SDE or the probability-flow ODE. Their cost is
the number of score evaluations. Here every sampler gets the same number on the same problem: reverse diffusion of two
moons with the *exact* score of the points (:class:`sbridge.ExactScore`), so only the error of the sampler itself
remains. W2 to fresh points is compared with its floor, the W2 of equally many fresh points, and with that of draws of
the points themselves, which a perfect sampler of this score returns.

With noising ``dX = f dt + g dW`` of density ``ρ``, both run from noise to data and have the same density at every time:

.. math:: \text{SDE:}\;\; dY = (-f + g^2 \nabla\log\rho)\, ds + g\, dB, \qquad
   \text{ODE:}\;\; \dot y = -f + \tfrac12 g^2 \nabla\log\rho .
"""

import sys

import matplotlib.pyplot as plt
import torch

import sbridge as sb
from sbridge import datasets
from sbridge.diffusion import AncestralSampler, DDIMSampler, PredictorCorrector
from sbridge.metrics import ExactW2
from sbridge.processes import EulerMaruyama
from sbridge.simulation.ode import Euler, Heun, RungeKutta4

FAST = "--fast" in sys.argv
POINTS = 1000
ROWS = 400 if FAST else 600
SEEDS = 8
BUDGETS = [8, 16, 32] if FAST else [8, 16, 32, 64, 128]

# %%
# The samplers
# ------------
# Steps are fine near the data and coarse near the noise: equal in ``t^(1/3)``. Two-stage methods get half as many
# steps, RK4 a quarter. One evaluation of every budget is used for the last step, the conditional mean ``E[X_0 | X_t]``.
# The rest of a budget is not used: of 8 evaluations RK4 uses 5.


def knots(steps, first=1e-3):
    """0, then ``steps`` steps from ``first`` to 1."""
    low = first ** (1 / 3)
    return sb.TimeGrid((0.0, *((low + (1 - low) * k / steps) ** 3 for k in range(steps)), 1.0))


samplers = {
    "SDE: Euler–Maruyama": (lambda grid: sb.samplers.StochasticSampler(EulerMaruyama(), grid), 1),
    "SDE: exact linear part": (lambda grid: sb.samplers.StochasticSampler(grid=grid), 1),
    "SDE: ancestral (DDPM)": (lambda grid: AncestralSampler(grid=grid), 1),
    "SDE: predictor–corrector": (lambda grid: PredictorCorrector(grid=grid), 2),
    "ODE: Euler": (lambda grid: sb.samplers.FlowSampler(Euler(), grid), 1),
    "ODE: DDIM": (lambda grid: DDIMSampler(grid), 1),
    "ODE: Heun": (lambda grid: sb.samplers.FlowSampler(Heun(), grid), 2),
    "ODE: RK4": (lambda grid: sb.samplers.FlowSampler(RungeKutta4(), grid), 4),
}

# %%
# The comparison
# --------------
# Standard errors are over independent data sets, starts and noises.

metric = ExactW2(ROWS)


def distance(rows, reference):
    """W2 between two sets of rows."""
    return metric(rows.double(), reference.double(), torch.Generator().manual_seed(0))


found, pictures = {}, {}
for seed in range(SEEDS):
    points = datasets.make("two_moons", POINTS, seed=10 * seed)
    fresh, others = datasets.make("two_moons", 2 * ROWS, seed=10 * seed + 1).split(ROWS)
    process = sb.fitting.choose_noise_schedule(sb.Samples(points))
    bridge = sb.diffusion.reverse_diffusion(process, sb.Samples(points), sb.ExactScore(process, sb.Samples(points)))
    found.setdefault("floor: fresh points", []).append(distance(others, fresh))
    again = sb.Samples(points).sample(ROWS, torch.Generator().manual_seed(seed))
    found.setdefault("draws of the points", []).append(distance(again, fresh))
    for budget in BUDGETS:
        for name, (make, cost) in samplers.items():
            sampled = make(knots((budget - 1) // cost)).run(bridge, ROWS, seed=100 * seed + len(pictures))
            found.setdefault((name, budget), []).append(distance(sampled.x, fresh))
            pictures[seed, name, budget] = sampled

values = {key: torch.tensor(one, dtype=torch.float64) for key, one in found.items()}
mean = {key: float(one.mean()) for key, one in values.items()}
error = {key: float(one.std() / len(one) ** 0.5) for key, one in values.items()}
for name in ("floor: fresh points", "draws of the points"):
    print(f"{name:26s} W2 {mean[name]:.3f} ± {error[name]:.3f}")
print(f"{'evaluations':26s}" + "".join(f"{budget:>16d}" for budget in BUDGETS))
for name in samplers:
    cells = (f"{mean[name, b]:.3f} ± {error[name, b]:.3f}" for b in BUDGETS)
    print(f"{name:26s}" + "".join(f"{cell:>16s}" for cell in cells))

# %%
# With the largest budget every sampler reaches the draws of the points, within the errors. They differ in how soon:
# Euler's and Heun's method for the ODE reach it with the smallest budget, since the paths of the ODE are smooth. RK4
# with a single step does not, and samplers of the SDE need more steps to remove the noise that they add. Differences of
# less than two standard errors mean nothing, and W2 of so few samples is noisy: the floor has an error too.

fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
colours = ("#0072B2", "#56B4E9", "#009E73", "#332288")  # SDE: cold colours; ODE: warm ones
warm = ("#D55E00", "#E69F00", "#CC79A7", "#882255")
for k, (name, colour) in enumerate(zip(samplers, colours + warm, strict=True)):
    style = "--" if name.startswith("ODE") else "-"
    ax.errorbar(
        BUDGETS,
        [mean[name, b] for b in BUDGETS],
        [error[name, b] for b in BUDGETS],
        fmt="os^Dos^D"[k] + style,
        color=colour,
        markersize=5,
        capsize=2,
        label=name,
    )
ax.axhline(mean["draws of the points"], color="#333333", linewidth=1, label="draws of the points")
ax.axhline(mean["floor: fresh points"], color="#333333", linewidth=1, linestyle=":", label="floor: fresh points")
ax.set(xscale="log", yscale="log", xlabel="evaluations of the score per sample", ylabel="W2 to fresh points")
ax.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
ax.set_yticks([0.4, 0.6, 1.0, 2.0], ["0.4", "0.6", "1", "2"])
ax.minorticks_off()
ax.set_title("Samplers at equal budgets (± standard errors)")
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

# %%
# Samples with the smallest budget
# --------------------------------

fig, panels = plt.subplots(2, 4, figsize=(10, 4.4), layout="constrained", sharex=True, sharey=True)
for ax, name in zip(panels.flat, samplers, strict=True):
    sampled = pictures[SEEDS - 1, name, BUDGETS[0]]
    ax.scatter(*points.T, s=4, color="#B8B8B8", linewidths=0)
    ax.scatter(*sampled.x.T, s=4, color="#0072B2", linewidths=0)
    ax.set(xlim=(-5, 7), ylim=(-3.5, 3.5), aspect="equal")
    ax.set_title(f"{name}\n{sampled.evaluations} evaluations", fontsize=9)
fig.supxlabel("$x_1$", fontsize=10)
fig.supylabel("$x_2$", fontsize=10)
fig.suptitle(f"Samples at a budget of {BUDGETS[0]} evaluations (grey: the points)")

# %%
# With your own data
# -------------------
# Every sampler works with every reverse diffusion: ``sb.generate(model, 1000, seed=1, sampler=DDIMSampler(grid))`` with
# ``model = sb.diffuse(x, seed=0)``. The default, without ``sampler=``, is the SDE with its exact linear part. To
# compare samplers on your data, use your array as ``points`` and held-out samples as ``fresh``.
