r"""The action gap is the score-matching loss
=========================================

Reverse diffusion is an optimal control problem. The action of a control is smallest for ``u = σᵀ∇log ρ``. The excess
over this minimum, the action gap, is the divergence between two path measures. Denoising score matching minimises a
different quantity, which does not need ``∇log ρ``. The two differ by a constant ``C`` that does not depend on the
network (Premkumar 2023, eq. (3.36)–(3.43)):

.. math:: \tfrac12 \int \mathbb E\, |\sigma^\top (s_\theta - \nabla\log\rho_t)|^2\, dt
   = \tfrac12 \int \mathbb E\, |\sigma^\top (s_\theta - \nabla\log p(X_t | X_0))|^2\, dt - C .

A :class:`sbridge.diffusion.GapRecorder` measures both sides with different random draws while a network trains.
:func:`sbridge.plotting.action_gap` plots them: the curves agree within their bands of two standard errors.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import plotting
from sbridge.diffusion import GapRecorder

FAST = "--fast" in sys.argv
UPDATES = 1500 if FAST else 6000
DRAWS = 32_768 if FAST else 131_072

# %%
# A distribution with a known score
# ---------------------------------
# Seven Gaussians on a ring. Under linear noise a mixture remains a mixture, so ``∇log ρ_t`` is known at all times.

angles = 2 * np.pi * torch.arange(7, dtype=torch.float64) / 7
data = sb.GaussianMixture(
    weights=torch.full((7,), 1 / 7, dtype=torch.float64),
    means=3.0 * torch.stack([angles.cos(), angles.sin()], 1),
    covariances=0.1 * torch.eye(2, dtype=torch.float64).repeat(7, 1, 1),
)
process = sb.fitting.choose_noise_schedule(data)
exact = sb.ExactScore(process, data)

# %%
# Training
# --------
# The network is trained on draws of the mixture. Both integrals start at the same ``s_min``.

rows = sb.Samples(data.sample(50_000, torch.Generator().manual_seed(0)).float())
solver = sb.ScoreMatching(updates=UPDATES)
recorder = GapRecorder(exact, start_time=solver.start_time, every=UPDATES // 15, draws=DRAWS, seed=1)
history = []
bridge = sb.diffuse(
    rows,
    process=process,
    solver=solver,
    seed=2,
    callbacks=[recorder, lambda state, info: history.append({"step": state.step, **info})],
)

fig, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
plotting.action_gap(recorder.rows, history, constant=recorder.constant, ax=ax)
ax.set_title("Action gap by two routes during training")

# %%
# Difference in standard errors
# -----------------------------
# The plot shows the difference of the two sides divided by its standard error. The draws are the same at every
# measurement, so neighbouring values are correlated. Each value alone should be of order one.

steps = np.array([row["step"] for row in recorder.rows])
difference = np.array([row["excess"] - row["gap"] for row in recorder.rows])
error = np.array([np.hypot(row["gap_error"], row["excess_error"]) for row in recorder.rows])
print(f"constant C = {recorder.constant:.3f} nats")
for row in (recorder.rows[0], recorder.rows[len(steps) // 2], recorder.rows[-1]):
    print(
        f"step {row['step']:5d}: gap {row['gap']:.4f} ± {row['gap_error']:.4f}, "
        f"denoising loss − C {row['excess']:.4f} ± {row['excess_error']:.4f} nats"
    )
print(f"largest difference: {abs(difference / error).max():.1f} standard errors, of {len(steps)} measurements")

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.axhspan(-2, 2, color="#0072B2", alpha=0.12, label="two standard errors")
ax.plot(steps, difference / error, "o-", color="#0072B2", markersize=3)
ax.set(xlabel="training step", ylabel="difference / standard error", title="Both routes agree to their errors")
ax.set_ylim(-max(4, 1.2 * abs(difference / error).max()), max(4, 1.2 * abs(difference / error).max()))
ax.legend(frameon=False, fontsize=8)

# %%
# What the gap bounds
# -------------------
# By the data-processing inequality, the gap plus the divergence of the prior bounds the divergence between the data
# (noised up to ``s_min``) and the generated samples. The plot shows generated points over the density:

samples = sb.generate(bridge, 3000, seed=3)
side = np.linspace(-5, 5, 200)
plane = torch.tensor(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
fig, ax = plt.subplots(figsize=(5, 4.8), layout="constrained")
ax.contourf(side, side, data.log_density(plane).exp().reshape(200, 200), levels=12, cmap="Blues")
ax.scatter(*samples.T, s=2, color="#D55E00", linewidths=0, alpha=0.6)
ax.set(
    xlim=(-5, 5),
    ylim=(-5, 5),
    aspect="equal",
    xlabel="$x_1$",
    ylabel="$x_2$",
    title="Generated points (orange) on the density",
)

# %%
# With your own data
# -------------------
# The gap can be measured only if the score is known: for a :class:`sbridge.GaussianMixture`, or for the points
# themselves (``sb.ExactScore(process, sb.Samples(x))``; then the gap shows how far the network is from memorising). For
# other data, compare the loss with its own late values to see whether training still improves it. The level of the loss
# means nothing, since ``C`` is unknown.
