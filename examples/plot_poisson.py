r"""Solving Poisson's equation by conditional generation
=====================================================

A diffusion model of *pairs* (solution, data) of ``−Δu = f`` learns the equation from its training data alone. Given the
source and the boundary values it generates the solution; given only some of them it generates the solutions that are
still possible. The model is trained on random solutions (:func:`sbridge.diffuse`). Its state holds unknown and observed
numbers jointly, and :class:`sbridge.diffusion.GuidedScore` conditions it. The generated fields are compared with the
direct solution of the linear system, and checked by the residual of the equation. Sources and boundary values are
Gaussian, so the exact conditional distribution (:func:`sbridge.diffusion.conditioned`) is known as well.

By Bayes' rule the score of the noised state, given an observation ``y`` of the state without noise, is

.. math:: \nabla \log \rho_t(x \,|\, y) = \nabla \log \rho_t(x) + \nabla_x \log p(y \,|\, X_t = x) ;

The first term is learned. The second is the guidance, which is added when the observation is known.
"""

import sys
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

import sbridge as sb
from sbridge.controls.networks import TIME_FEATURES
from sbridge.diffusion import GuidedScore, LinearObservation, conditioned, end_distribution, reverse_grid

FAST = "--fast" in sys.argv
SIDE = 6 if FAST else 8  # inner points along a side
UPDATES = 2500 if FAST else 6000
STEPS, CASES, DRAWS = (80, 12, 64) if FAST else (120, 24, 128)

# %%
# Random problems and their solutions
# -----------------------------------
# The unit square with ``SIDE × SIDE`` inner points and the five-point Laplacian. Sources and boundary values are smooth
# Gaussian fields. The source is stored in units in which it has about the size of the solution. A state is ``(u inside,
# f inside, u on the boundary)``.

h = 1 / (SIDE + 1)
axis = np.arange(1, SIDE + 1) * h
inside = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
zero, one = np.zeros(SIDE), np.ones(SIDE)
boundary = np.concatenate([np.stack(side, -1) for side in ((zero, axis), (one, axis), (axis, zero), (axis, one))])
n, m = len(inside), len(boundary)

line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(SIDE, SIDE))
eye = scipy.sparse.eye_array(SIDE)
laplacian = ((scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line)) / h**2).tocsc()  # −Δ
touches = abs(np.linalg.norm(inside[:, None] - boundary[None], axis=-1) - h) < 1e-9
lift = touches / h**2  # what boundary values add to the right-hand side
UNIT = 20.0  # of the source

rng = np.random.default_rng(0)


def root(points, length):
    """A root of the covariance ``exp(−|x − y|²/2ℓ²)`` of a smooth field at ``points``."""
    squares = np.square(points[:, None] - points[None]).sum(-1)
    values, vectors = np.linalg.eigh(np.exp(-0.5 * squares / length**2))
    return vectors * np.sqrt(np.maximum(values, 0))


roots = root(inside, 0.3), root(boundary, 0.5)


def solve(source, values):
    """The direct solution, one row per problem."""
    right = UNIT * source + values @ lift.T
    return scipy.sparse.linalg.spsolve(laplacian, right.T).T


def problems(count):
    """States of solved problems."""
    source, values = (rng.standard_normal((count, len(one))) @ one.T for one in roots)
    return torch.from_numpy(np.concatenate([solve(source, values), source, values], 1)).float()


train, test = problems(20_000), problems(CASES)
print(f"states of dimension {train.shape[1]}: {n} unknown, {n} of the source, {m} on the boundary")

# %%
# A model of the joint state
# --------------------------
# The score of a Gaussian field is linear in the state, with gains that depend on the noise level. A recipe for such a
# network takes a few lines; for fields that are not Gaussian use :class:`sbridge.networks.MLP`. Training uses the
# states alone.


class Gains(torch.nn.Module):
    """``W₂ (a(t) · W₁ x)``: linear in the state, not in time."""

    def __init__(self, dim):
        super().__init__()
        self.gains = torch.nn.Sequential(
            torch.nn.Linear(TIME_FEATURES, 128),
            torch.nn.SiLU(),
            torch.nn.Linear(128, 128),
            torch.nn.SiLU(),
            torch.nn.Linear(128, dim),
        )
        self.first = torch.nn.Linear(dim, dim, bias=False)
        self.last = torch.nn.Linear(dim, dim, bias=False)
        torch.nn.init.zeros_(self.last.weight)

    def forward(self, features, x):
        """``features`` of the time, states ``x``."""
        return self.last(self.gains(features) * self.first(x))


@dataclass(frozen=True)
class GainsRecipe:
    """Makes a :class:`Gains` for states of any dimension."""

    def __call__(self, dim):
        """The network."""
        return Gains(dim)


solver = sb.ScoreMatching(
    updates=UPDATES,
    network=GainsRecipe(),
    optimisation=sb.Optimisation(learning_rate=5e-3, batch=512, ema_decay=0.99),
    start_time=1e-3,
)
model = sb.diffuse(train, solver=solver, seed=1)
process = model.reference

# %%
# Given source and boundary values
# --------------------------------
# For each test problem the data are observed, with a little noise allowed, and the solution is generated. The exact
# conditional distribution for the same observation is the reference: no model can be nearer to the direct solution.

NOISE = 0.05
size = train.shape[1]
mix = np.block(
    [
        [
            UNIT * scipy.sparse.linalg.spsolve(laplacian, roots[0]),
            scipy.sparse.linalg.spsolve(laplacian, lift @ roots[1]),
        ],
        [roots[0], np.zeros((n, m))],
        [np.zeros((m, n)), roots[1]],
    ]
)
law = sb.Gaussian(torch.zeros(size, dtype=torch.float64), torch.from_numpy(mix @ mix.T) + 1e-9 * torch.eye(size))
grid = reverse_grid(STEPS, solver.start_time)


def generate(score, observation, y, seed):
    """One state for each row of ``y`` that agrees with it."""
    guided = GuidedScore(process, score, observation, y)
    prior = end_distribution(process, sb.Samples(train))
    return sb.generate(
        sb.diffusion.reverse_diffusion(process, sb.Samples(train), guided, prior=prior, grid=grid), len(y), seed=seed
    )


def solution_error(states, truth):
    """``|u − u_direct|/|u_direct|`` of every row."""
    gap = states[:, :n].double() - truth[:, :n].double()
    return gap.norm(dim=1) / truth[:, :n].double().norm(dim=1)


def residual(states, data):
    """``|−Δu − f|/|f|`` of every row, with ``u`` from ``states``, and ``f`` and boundary values from ``data``."""
    values = data.double().numpy()
    applied = laplacian @ states[:, :n].double().numpy().T - lift @ values[:, 2 * n :].T
    source = UNIT * values[:, n : 2 * n]
    return torch.from_numpy(np.linalg.norm(applied.T - source, axis=1) / np.linalg.norm(source, axis=1))


given = LinearObservation.of_coordinates(list(range(n, size)), size, NOISE)
y = test[:, n:]
learned = sb.diffusion.score_of(model)
found = generate(learned, given, y, seed=2)
exact = torch.stack([conditioned(law, given, row.double()).mean for row in y])
untold = sb.generate(model, CASES, seed=3, sampler=sb.samplers.StochasticSampler(grid=grid))


def show(name, values):
    """A mean over test problems with its standard error."""
    print(f"{name}: {values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f} (s.e.)")


show("error of the generated u against the direct solve", solution_error(found, test))
show("error of the exact conditional mean", solution_error(exact, test))
show("residual of −Δu = f, f and boundary values as given", residual(found, test))
show("residual of −Δu = f, f and boundary values as generated", residual(found, found))
show("the same without any observation", residual(untold, untold))

# %%
# Most of the residual is the second difference of a small error: differencing multiplies an error on the scale of one
# grid cell by ``4/h²``.
#
# In the pictures red is positive and blue is negative. ``u`` and the boundary values share one scale in each row, and
# the last column shows five times the difference on that scale. Dots are boundary values; they are the same in all
# columns.


def picture(field):
    """A field at the inner points as an image."""
    return np.asarray(field).reshape(SIDE, SIDE).T


fig, panels = plt.subplots(3, 4, figsize=(10, 7.4), layout="compressed", sharex=True, sharey=True)
box = (h / 2, 1 - h / 2, h / 2, 1 - h / 2)
for case, row in enumerate(panels):
    truth, made = test[case], found[case]
    top = float(truth[:n].abs().max())
    fields = (UNIT * truth[n : 2 * n], truth[:n], made[:n], made[:n] - truth[:n])
    limits = (float(fields[0].abs().max()), top, top, top / 5)
    names = ("source $f$ (given)", "direct solve", "generated", "difference × 5")
    for ax, field, limit, name in zip(row, fields, limits, names, strict=True):
        ax.imshow(picture(field), origin="lower", extent=box, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.scatter(
            *boundary.T,
            c=truth[2 * n :],
            cmap="RdBu_r",
            vmin=-top,
            vmax=top,
            s=14,
            clip_on=False,
            edgecolors="#999999",
            linewidths=0.4,
        )
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 1], yticks=[0, 1])
        if case == 0:
            ax.set_title(name, fontsize=10)
        if case == 2:
            ax.set_xlabel("$x_1$")
    row[0].set_ylabel("$x_2$")
fig.suptitle("Solutions generated from source and boundary values (dots)")

# %%
# Given half of the source
# ------------------------
# Now the source is known on the left half only, and the boundary values everywhere. Many solutions are possible. The
# generated ones should have the mean and the standard deviation of the exact conditional distribution, which is
# Gaussian. No new training is needed. The same guidance on the exact score (:class:`sbridge.ExactScore`) separates the
# errors of the learned score from those of the guidance, which is exact for Gaussian data. With ``--fast`` the learned
# samples are too wide where the source was not observed (by the printed number); longer training brings them closer.

left = [n + k for k in range(n) if inside[k, 0] < 0.5]
half = LinearObservation.of_coordinates([*left, *range(2 * n, size)], size, NOISE)
seen = test[0] @ half.matrix.float().T
posterior = conditioned(law, half, seen.double())
mean, spread = posterior.mean[:n], posterior.covariance.diagonal()[:n].sqrt()
draws = {}
for name, score in (("learned score", learned), ("exact score", sb.ExactScore(process, law))):
    draws[name] = generate(score, half, seen.expand(DRAWS, -1), seed=4)[:, :n].double()
    off = float((draws[name].mean(0) - mean).norm() / mean.norm())
    ratio = float((draws[name].var(0) / spread.square()).mean().sqrt())
    print(f"{name}: error of the mean {off:.1%}, standard deviation {ratio:.3f} times the exact one")
chance = float((spread / DRAWS**0.5).norm() / mean.norm())
print(f"expected by chance with {DRAWS} draws: {chance:.1%}, and {(2 / DRAWS) ** 0.5 / 2:.3f} (s.e. at one point)")

made = draws["learned score"]
fig, panels = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained", sharex=True, sharey=True)
top, wide = float(mean.abs().max()), float(torch.maximum(spread, made.std(0)).max())
pictures = (
    ("mean, exact", mean, "RdBu_r", -top, top),
    ("mean, generated", made.mean(0), "RdBu_r", -top, top),
    ("standard deviation, exact", spread, "viridis", 0, wide),
    ("standard deviation, generated", made.std(0), "viridis", 0, wide),
)
for k, (ax, (name, field, colours, low, high)) in enumerate(zip(panels, pictures, strict=True)):
    image = ax.imshow(picture(field), origin="lower", extent=box, cmap=colours, vmin=low, vmax=high)
    ax.axvline(0.5, color="#333333", linewidth=0.8, linestyle=":")
    ax.set(xlabel="$x_1$", xticks=[0.2, 0.8], yticks=[0.2, 0.8])
    ax.set_title(name, fontsize=10)
    if k % 2:
        fig.colorbar(image, ax=panels[k - 1 : k + 1], shrink=0.8, label="$u$" if k == 1 else "s.d. of $u$")
panels[0].set_ylabel("$x_2$")
fig.suptitle("Source observed left of the dotted line: the possible $u$")

# %%
# With your own data
# -------------------
# A state is a row of numbers, some of which will be observed. Stack them, train with ``model = sb.diffuse(rows)``, and
# describe the observation by ``LinearObservation.of_coordinates(indices, size, noise)`` or by any matrix. For data that
# are not Gaussian the network is :class:`sbridge.networks.MLP` (the default). Guidance is exact for Gaussian data and
# an approximation otherwise: test it on cases in which everything is known.
