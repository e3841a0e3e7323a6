"""Reward tilts of exact diffusions: generated samples against exact draws, and the value.

``OMP_NUM_THREADS=1 python -m docs.benchmarks.tilt --seeds 0 1 2`` tilts the reverse diffusion of a Gaussian mixture,
with its exact score, by a quadratic reward. The tilted mixture has a closed form, :func:`sbridge.exact.tilted_law`.
Rows are the energy distance of 4000 generated samples from 4000 exact draws, with the mean and the standard error over
seeds: of the tilted diffusion; of exact draws (``floor``); of the model without a tilt (``model``); of samples of the
model, drawn again with weights ``e^r`` (``weighted``), whose effective sample size is beside. ``value`` is −log Z.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from docs.benchmarks.reversal import DATA
from sbridge.benchmarks.output import row, say
from sbridge.benchmarks.tables import mean
from sbridge.diffusion import ExactScore, generate, reverse_diffusion
from sbridge.exact import tilted_law
from sbridge.fitting import choose_noise_schedule, tilt
from sbridge.laws import Law
from sbridge.measures import importance_weights
from sbridge.metrics import energy_distance
from sbridge.problems import Quadratic
from sbridge.random import derive, generator

_ROWS = 4000


def reward(dim: int) -> Quadratic:
    """A quadratic reward that moves shares of modes, means and variances."""
    if dim == 2:
        return Quadratic(-0.5 * torch.tensor([[0.5, 0.2], [0.2, 1.0]]), torch.tensor([1.0, 0.5]))
    curvature, slope = 0.1 * torch.ones(dim), torch.zeros(dim)
    curvature[:2] += torch.tensor([1.0, 0.5])
    slope[:4] = torch.tensor([0.8, -0.8, 0.4, 0.4])
    return Quadratic(-0.5 * curvature.diag(), slope)


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        dims: 2 (three modes of unequal weights) and 16 (five modes).
        seeds: of the fits.
    """

    dims: tuple[int, ...] = (2, 16)
    seeds: tuple[int, ...] = (0, 1, 2)


def main(settings: Settings) -> None:
    """Prints the table."""
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    for dim in settings.dims:
        data, wanted = DATA[dim], reward(dim)
        process, exact = choose_noise_schedule(data), tilted_law(data, wanted)
        model = reverse_diffusion(process, data, ExactScore(process, data))
        found: dict[str, list[float]] = {"tilted": [], "floor": [], "model": [], "weighted": []}
        say(f"d = {dim}: exact value {-exact.log_normaliser:.4f}")
        for seed in settings.seeds:
            start = time.process_time()
            tilted = tilt(model, wanted, seed=seed)
            seconds = time.process_time() - start

            def draw(key: str, seed: int = seed, law: Law = exact.law) -> Tensor:
                return law.sample(_ROWS, generator(derive(seed, key))).float()

            fresh, plain = draw("fresh"), generate(model, _ROWS, seed=derive(seed, "model"))
            weights = importance_weights(wanted(plain).double())
            again = torch.multinomial(weights.values, _ROWS, replacement=True, generator=generator(seed))
            rows = {
                "tilted": generate(tilted, _ROWS, seed=derive(seed, "tilted")),
                "floor": draw("floor"),
                "model": plain,
                "weighted": plain[again],
            }
            distances = {name: energy_distance(one, fresh) for name, one in rows.items()}
            for name, distance in distances.items():
                found[name].append(distance)
            row(
                f"seed {seed}",
                **{name: f"{distance:.4f}" for name, distance in distances.items()},
                ess=f"{weights.effective_sample_size / _ROWS:.0%}",
                value=str(tilted.value),
                cpu=f"{seconds:.0f} s",
            )
        if len(settings.seeds) > 1:
            row(
                "mean ± s.e.",
                **{name: f"{mean(one).value:.4f} ± {mean(one).standard_error:.4f}" for name, one in found.items()},
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
