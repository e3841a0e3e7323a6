"""Problems on a line: an interval that holds the data and the noised data, and an end for a bridge."""

from __future__ import annotations

import math

import torch

from sbridge.identities.settings import Setting
from sbridge.identities.tools.components import Components
from sbridge.laws import Gaussian
from sbridge.pde import Grid


def mean_and_std(setting: Setting, fraction: float) -> tuple[float, float]:
    """Returns mean (also over coordinates) and standard deviation of the noised data at a fraction of the horizon."""
    law = Components.of(setting.data).moved(setting.process.transition(0.0, fraction * setting.horizon))
    return float(law.mean().mean()), law.width


def line_grid(setting: Setting, fineness: float) -> Grid:
    """Makes a grid on an interval that holds the data and the noised data.

    It has ``fineness`` cells in the smallest standard deviation: that of a component of the data, or of the noise in
    a third of the horizon, seen from either end.
    """
    (start, narrow), (centre, width) = mean_and_std(setting, 0.0), mean_and_std(setting, 1.0)
    reach = 7.0 * max(width, narrow) + abs(start - centre)
    component = float(Components.of(setting.data).covariances.diagonal(dim1=-2, dim2=-1).min().sqrt())
    knots = setting.horizon * torch.linspace(0.0, 1.0, 4, dtype=torch.float64)
    third = setting.process.transition(knots[:-1], knots[1:])
    noise = float(third.root.values.min() / third.map.values.abs().max().clamp_min(1.0))
    cells = math.ceil(2.0 * reach * fineness / min(component, noise))
    return Grid.of(centre - reach, centre + reach, min(1200, cells))


def shifted_target(setting: Setting) -> Gaussian:
    """Returns a distribution that the noising process does not reach: shifted by half its width, and narrower."""
    centre, width = mean_and_std(setting, 1.0)
    place = torch.tensor([centre + 0.5 * width], dtype=torch.float64)
    return Gaussian(place, torch.tensor([[(0.8 * width) ** 2]], dtype=torch.float64))
