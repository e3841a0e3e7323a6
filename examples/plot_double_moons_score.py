"""A learned score on double moons
===============================

A network learns the score ``∇ log ρ_t`` of noised points (:func:`sbridge.diffuse` with
:class:`sbridge.ScoreMatching`). For a finite set of points the score is also known in closed form, a softmax over the
points (:class:`sbridge.ExactScore`), so the network can be compared with what it should have learned, noise level by
noise level. Both scores then drive the same reversal, and W2 to fresh points says which one is nearer to the law that
the points came from.
"""

import sys

import matplotlib.pyplot as plt
import torch

import sbridge as sb
from sbridge import datasets, plotting
from sbridge.metrics import ExactW2, sampling_floor

FAST = "--fast" in sys.argv
UPDATES = 1500 if FAST else 8000
ROWS, JUDGED = 1000, 500 if FAST else 1000

# %%
# Training
# --------

points = datasets.make("noisy_moons", ROWS, seed=0)
history = []
model = sb.diffuse(
    points,
    solver=sb.ScoreMatching(updates=UPDATES),
    seed=1,
    callbacks=[lambda state, info: history.append({"step": state.step, **info})],
)
process = model.reference
exact = sb.ExactScore(process, sb.Samples(points))
learned = sb.score_of(model)

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
plotting.history(history, ax=ax)
ax.set_title("Denoising score matching: the loss does not go to zero")

# %%
# The loss levels off at a positive constant: denoising targets are noisy, and their noise does not depend on the
# network. What the loss has above that constant is the error of the score itself, which is measured next.
#
# Error by noise level
# --------------------
# ``(E|s_θ − s|² / E|s|²)^½`` over noised points, with the standard error of the ratio's numerator beside it.

levels = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
errors, bars = [], []
for t, states in zip(levels, model.forward.marginals(levels, 20_000, seed=2), strict=True):
    with torch.no_grad():
        truth = exact(t, states)
        squares = (learned(t, states) - truth).square().sum(1).double()
    scale = truth.double().square().sum(1).mean()
    relative = float((squares.mean() / scale).sqrt())
    bar = float(squares.std() / len(squares) ** 0.5 / scale) / (2 * relative)
    errors.append(relative)
    bars.append(bar)
    print(f"t = {t:<5g}: relative error of the learned score {relative:.3f} ± {bar:.3f} (s.e.)")

fig, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
ax.errorbar(levels, errors, yerr=bars, fmt="o-", color="#0072B2", capsize=2)
ax.set(xscale="log", ylim=(0, None), xlabel="noising time $t$", ylabel="relative error")
ax.set_title("Learned against exact score: hardest near the data")

# %%
# Close to the data the exact score points to single training points. A smooth network does not follow it there, and
# that is what makes its samples new points.

fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.score_field(model, [0.01, 0.1, 0.4], seed=3, ax=ax)
fig.suptitle("Learned score")

memory = sb.reverse_diffusion(process, sb.Samples(points), exact)
fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.score_field(memory, [0.01, 0.1, 0.4], seed=3, ax=ax)
fig.suptitle("Exact score of the training points")

# %%
# Generation
# ----------
# Both reversals from the same prior with the same noise. The floor is W2 between two independent sets of fresh points:
# nothing can be expected below it.

samples = {"learned score": sb.generate(model, JUDGED, seed=4), "exact score": sb.generate(memory, JUDGED, seed=4)}
fresh = datasets.make("noisy_moons", 4 * JUDGED, seed=5)
metric = ExactW2(JUDGED)
floor = sampling_floor(metric, fresh, (JUDGED, JUDGED), torch.Generator().manual_seed(0))
print(f"W2 between {JUDGED} and {JUDGED} fresh points (floor): {floor.mean:.3f} ± {floor.standard_error:.3f}")
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.6), layout="constrained", sharex=True, sharey=True)
for ax, (name, rows) in zip(panels, samples.items(), strict=True):
    w2 = metric(rows, fresh[:JUDGED], torch.Generator().manual_seed(0))
    nearest = torch.cdist(rows.double(), points.double()).amin(1).median()
    print(f"{name}: W2 to fresh points {w2:.3f}; median distance to the nearest training point {nearest:.4f}")
    ax.scatter(*points.T, s=14, color="#B8B8B8", linewidths=0, label="training points")
    ax.scatter(*rows.T, s=5, color="#0072B2", linewidths=0, label="generated")
    ax.set(xlabel="$x_1$", title=f"{name}: W2 {w2:.3f} (floor {floor.mean:.3f})", aspect="equal")
panels[0].set_ylabel("$x_2$")
panels[0].legend(frameon=False, fontsize=8, loc="lower left")
