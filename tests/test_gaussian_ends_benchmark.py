"""The errors of the table of Gaussian ends under a turning reference."""

from dataclasses import replace

import pytest
import torch

from docs.benchmarks.gaussian_ends import Settings, drift_errors, fitted, main, under_brownian
from sbridge.benchmarks.pairs import GaussianPair, turning_reference
from sbridge.fitting import solve
from sbridge.measures import Direction
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.solutions import Bridge
from sbridge.solvers import GaussianBridge
from sbridge.solvers.gaussian import GaussianControl

PAIR = GaussianPair(turning_reference(3, 1.0), 3)


def exact(pair):
    return solve(BridgeProblem(pair.source, pair.target, pair.reference), GaussianBridge(), seed=0)


def test_the_exact_bridge_has_no_error():
    for errors in drift_errors(exact(PAIR), PAIR).values():
        assert max(errors.values()) < 1e-10


@pytest.mark.parametrize("direction", list(Direction))
def test_a_shifted_control_is_off_by_its_shift(direction):
    """``u* + h``: the control is off by ``|h|²`` over the mean of ``|u*|²``, which is twice ``V*`` going forward."""
    shift = torch.tensor([0.3, -0.4, 0.1])
    bridge = exact(PAIR)
    moved = {
        measure.direction: replace(measure, control=lambda t, x, c=measure.control: c(t, x) + shift)
        for measure in (bridge.forward, bridge.backward)
    }
    found = drift_errors(Bridge(moved[Direction.FORWARD], moved[Direction.BACKWARD]), PAIR)[direction]
    if direction is Direction.FORWARD:
        assert found["control"] == pytest.approx(0.26 / (2.0 * PAIR.coupling.value), rel=0.03)
    sigma = PAIR.reference.scale(0.0).values
    ratio = float((sigma @ shift.double()).square().sum()) / 0.26
    control, total = GaussianControl(PAIR.coupling, direction), 0.0
    for k in range(20):
        t = (k + 0.5) / 20
        mean, covariance = PAIR.coupling.marginal(t)
        x = mean + torch.randn(4000, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) @ (
            torch.linalg.cholesky(covariance).mT
        )
        drift = direction.value * PAIR.reference.drift(t, x) + PAIR.reference.scale(t)(control(t, x))
        total += float(drift.square().sum(1).mean()) / 20
    assert found["drift"] == pytest.approx(0.26 * ratio / total, rel=0.03)


def test_the_brownian_answer_is_right_for_a_brownian_reference_and_far_off_for_a_turning_one():
    plain = GaussianPair(BrownianMotion(1.0), 3)
    assert max(drift_errors(under_brownian(plain), plain)[Direction.FORWARD].values()) < 1e-10
    assert drift_errors(under_brownian(PAIR), PAIR)[Direction.FORWARD]["drift"] > 0.1


def test_rows_of_the_command(capsys):
    main(Settings(reference="turning", dims=(2,), seeds=1, solvers=("GaussianBridge",), rows=4000))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        f"{name} d=2 {direction}"
        for name in ("Brownian reference", "GaussianBridge")
        for direction in ("forward", "backward")
    ]
    assert float(lines[2].split("drift ")[1].split()[0]) < 0.02


@pytest.mark.slow
def test_the_default_solver_learns_the_drift_to_two_percent():
    pair = GaussianPair(turning_reference(2, 1.0), 2)
    bridge, _ = fitted("IMF", pair, Settings(reference="turning"))
    for errors in drift_errors(bridge, pair).values():
        assert errors["drift"] < 0.02
