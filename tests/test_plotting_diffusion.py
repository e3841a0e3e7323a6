"""Figures of reverse diffusion: what is drawn is what they say."""

import numpy as np
import pytest
import torch

from sbridge.controls import MLP
from sbridge.diffusion import ControlScore, ExactScore, GapRecorder, ScoreMatching, reverse_diffusion, reverse_grid
from sbridge.errors import InvalidInputError
from sbridge.fitting import diffuse
from sbridge.laws import GaussianMixture, Samples
from sbridge.plotting import action_gap, densities, marginals, reversals, score_field
from sbridge.plotting.standard import standard_figures
from sbridge.processes import VariancePreserving
from sbridge.runs import History
from sbridge.training import Optimisation

VP = VariancePreserving()


def mixture(dim):
    means = torch.tensor([[1.5, 0.0, 0.0], [-1.0, 1.0, 0.5]], dtype=torch.float64)[:, :dim]
    eye = torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.1 * eye, 0.05 * eye]))


def exactly(dim, data=None):
    data = mixture(dim) if data is None else data
    return reverse_diffusion(VP, data, ExactScore(VP, data), grid=reverse_grid(60))


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_densities_show_the_exact_law_between_two_histograms():
    bridge, exact = exactly(1), ExactScore(VP, mixture(1))
    host = densities(bridge, exact, [0.0, 0.05, 1.0], seed=1, n=4000)
    assert len(host.child_axes) == 3
    for t, panel in zip((0.0, 0.05, 1.0), host.child_axes, strict=True):
        x, y = lines(panel)[r"exact $\rho_t$"].get_data()
        expected = exact.log_density(t, torch.from_numpy(np.asarray(x))[:, None]).exp()
        assert np.allclose(y, expected)
        bars = np.array([patch.get_height() for patch in panel.patches if hasattr(patch, "get_height")])
        middles = np.array([p.get_x() + 0.5 * p.get_width() for p in panel.patches if hasattr(p, "get_height")])
        distance = np.abs(bars - np.interp(middles, x, y)).mean() / bars.mean()
        assert distance < 0.25  # Monte Carlo noise of 60 bins
    with pytest.raises(InvalidInputError, match="one dimension"):
        densities(exactly(2), ExactScore(VP, mixture(2)), seed=1)
    points = Samples(mixture(1).sample(30, torch.Generator().manual_seed(0)))
    with pytest.raises(InvalidInputError, match="after 0 only"):
        densities(exactly(1, points), ExactScore(VP, points), [0.0], seed=1)
    assert len(densities(exactly(1, points), ExactScore(VP, points), seed=1, n=200).child_axes) == 6


def test_scores_on_a_line_and_in_a_plane():
    exact = ExactScore(VP, mixture(1))
    host = score_field(exactly(1), [0.1, 0.5], seed=1, exact=exact, n=200)
    for t, panel in zip((0.1, 0.5), host.child_axes, strict=True):
        x, y = lines(panel)["learned"].get_data()
        assert np.allclose(y, exact(t, torch.from_numpy(np.asarray(x))[:, None])[:, 0], atol=1e-9)
        assert np.allclose(y, lines(panel)["exact"].get_ydata())
    for dim in (2, 3):
        host = score_field(exactly(dim), [0.1, 1.0], seed=1, n=500)
        assert [
            panel.get_title().startswith(f"$t$ = {t}") for panel, t in zip(host.child_axes, ("0.1", "1"), strict=True)
        ]
        assert "score" in host.child_axes[0].get_title()
    # arrows of a law that is almost Gaussian point to its middle
    host = score_field(exactly(2), 1.0, seed=1, n=2000)
    (arrows,) = [one for one in host.collections if hasattr(one, "U")]
    assert np.mean(arrows.get_offsets()[:, 0] * arrows.U + arrows.get_offsets()[:, 1] * arrows.V < 0) > 0.9
    for times in ([], [0.0], [1.1]):
        with pytest.raises(InvalidInputError, match="bridge times"):
            score_field(exactly(2), times, seed=1)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_without_the_score_paths_leave_the_picture(dim):
    host = reversals(exactly(dim), seed=1, n=60)
    with_score, without = host.child_axes
    assert with_score.get_title() == "with the score"
    assert "end outside" in without.get_title()
    assert with_score.get_ylim() == without.get_ylim()
    assert with_score.get_xlim() == without.get_xlim()


def test_rows_of_an_end_stand_behind_its_own_panel_in_a_reversed_bridge_too():
    shifted = GaussianMixture(mixture(2).weights, mixture(2).means + 30.0, mixture(2).covariances)
    bridge = reverse_diffusion(VP, shifted, ExactScore(VP, shifted), grid=reverse_grid(10))
    for one, times in ((bridge, (0.0, 1.0)), (bridge.reversed(), (1.0, 0.0))):
        for panel, t in zip(marginals(one, times, seed=1, n=50).child_axes, times, strict=True):
            backdrop, states = panel.collections
            middle = backdrop.get_offsets().mean(0), states.get_offsets().mean(0)
            assert np.abs(middle[0] - middle[1]).max() < 3.0, t


def test_the_gap_and_the_loss_less_its_constant_are_drawn_as_measured():
    rows = [
        {"step": k, "gap": 1.0 / k, "excess": 1.02 / k, "gap_error": 0.01, "excess_error": 0.02} for k in (1, 50, 100)
    ]
    history = [{"step": k, "loss": 7.0 + 1.0 / k} for k in range(1, 101)]
    drawn = lines(action_gap(rows, history, constant=7.0))
    gap, excess, losses = (
        next(v for k, v in drawn.items() if k.startswith(s)) for s in ("gap", "denoising", "training")
    )
    assert np.allclose(gap.get_ydata(), [1.0, 0.02, 0.01])
    assert np.allclose(excess.get_ydata(), [1.02, 0.0204, 0.0102])
    x, y = losses.get_data()
    assert np.allclose(y[-1], np.mean([1.0 / k for k in range(76, 101)]))
    assert x[-1] == 88
    with pytest.raises(InvalidInputError, match="no measurements"):
        action_gap([])


def test_figures_of_a_trained_diffusion(tmp_path):
    """The recorder among the callbacks, and everything drawn in a folder."""
    rows = mixture(2).sample(200, torch.Generator().manual_seed(1)).float()
    solver = ScoreMatching(updates=20, network=MLP(16, 1), optimisation=Optimisation(batch=64), grid=reverse_grid(20))
    recorder, history = GapRecorder(ExactScore(VP, Samples(rows)), every=10, draws=400), History(20)
    bridge = diffuse(rows, process=VP, solver=solver, callbacks=[recorder, history])
    assert [row["step"] for row in recorder.rows] == [1, 10, 20]
    assert len(lines(action_gap(recorder.rows, history.rows))) == 2
    made = standard_figures(bridge, rows, bridge.backward.starts(50, seed=1), history.rows, tmp_path, seed=1)
    assert [path.stem for path in made] == ["reversal", "marginals", "generation", "score", "history"]
    assert isinstance(ControlScore(VP, bridge.backward.control)(0.5, rows), torch.Tensor)
