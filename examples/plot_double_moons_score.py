r"""A learned score on double moons
===============================

A network learns the score ``∇ log ρ_t`` of noised points (:func:`sbridge.diffuse` with :class:`sbridge.ScoreMatching`).
For a finite set of points the score is also known in closed form, a softmax over the points
(:class:`sbridge.ExactScore`), so the network can be compared with the exact score at every noise level. Both scores
then drive the same reversal. W2 to fresh points is compared with its floor, and the distance to the nearest training
point distinguishes new points from copies.

The network ``s_θ`` minimises the denoising loss. It needs only the transition from a point to its noised state:

.. math:: \tfrac12 \int g(t)^2\, \mathbb E\, |s_\theta(t, X_t) - \nabla \log p(X_t \,|\, X_0)|^2\, dt .
"""

# sphinx_gallery_thumbnail_number = 5

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
learned = sb.diffusion.score_of(model)

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
plotting.history(history, ax=ax)
ax.set_title("Denoising score matching: the loss does not go to zero")

# %%
# The loss levels off at a positive constant: the denoising targets are noisy, and their noise does not depend on the
# network. The rest of the loss is the error of the score, which is measured next.
#
# Error by noise level
# --------------------
# ``(E|s_θ − s|² / E|s|²)^½`` over noised points, with the standard error of the numerator of the ratio.

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
# Near the data the exact score points to single training points. A smooth network does not reproduce that, so its
# samples are new points.

fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.score_field(model, [0.01, 0.1, 0.4], seed=3, ax=ax)
fig.suptitle("Learned score")

memory = sb.diffusion.reverse_diffusion(process, sb.Samples(points), exact)
fig, ax = plt.subplots(figsize=(9.4, 3.4))
plotting.score_field(memory, [0.01, 0.1, 0.4], seed=3, ax=ax)
fig.suptitle("Exact score of the training points")

# %%
# Generation
# ----------
# Both reversals start from the same prior and use the same noise. W2 is averaged over several sets. The floor is W2
# between two independent sets of fresh points; no method can be expected to score less. A network trained as briefly as
# with ``--fast`` also leaves some points between the moons. W2 then does not distinguish the two scores, but the
# distances show the copies: fresh points keep a distance from training points, and points from the exact score do not.

SETS = 4
samples = {
    "learned score": sb.generate(model, SETS * JUDGED, seed=4),
    "exact score": sb.generate(memory, SETS * JUDGED, seed=4),
}
fresh = datasets.make("noisy_moons", SETS * JUDGED, seed=5)
metric = ExactW2(JUDGED)
floor = sampling_floor(metric, fresh, (JUDGED, JUDGED), torch.Generator().manual_seed(0))
kept = torch.cdist(fresh.double(), points.double()).amin(1).median()
print(f"fresh points (floor): W2 {floor.mean:.3f} ± {floor.standard_error:.3f} (s.e.); ", end="")
print(f"median distance to the nearest training point {kept:.4f}")
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.6), layout="constrained", sharex=True, sharey=True)
for ax, (name, rows) in zip(panels, samples.items(), strict=True):
    pairs = zip(rows.split(JUDGED), fresh.split(JUDGED), strict=True)
    w2 = torch.tensor([metric(x, y, torch.Generator().manual_seed(0)) for x, y in pairs])
    bar = w2.std() / SETS**0.5
    nearest = torch.cdist(rows.double(), points.double()).amin(1).median()
    print(f"{name}: W2 to fresh points {w2.mean():.3f} ± {bar:.3f} (s.e.); ", end="")
    print(f"median distance to the nearest training point {nearest:.4f}")
    ax.scatter(*points.T, s=14, color="#B8B8B8", linewidths=0, label="training points")
    ax.scatter(*rows[:JUDGED].T, s=5, color="#0072B2", linewidths=0, label="generated")
    ax.set(xlabel="$x_1$", title=f"{name}: W2 {w2.mean():.2f} ± {bar:.2f} (floor {floor.mean:.2f})", aspect="equal")
panels[0].set_ylabel("$x_2$")
panels[0].legend(frameon=False, fontsize=8, loc="lower left")

# %%
# With your own data
# -------------------
# For an array with one sample per row, all you need is ``model = sb.diffuse(x, seed=0)`` and ``sb.generate(model, 1000,
# seed=1)``. Evaluate with held-out samples: compare W2 to them with its floor, and the distance to the nearest training
# point with that of held-out samples, which shows copies. ``sbridge diffuse FILE --out run`` does the same from files.
