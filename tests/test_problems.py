"""Problems: what fits together, and the same problem in other units."""

import pytest
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.laws.scaling import AffineScaling
from sbridge.problems import BridgeProblem, ControlProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, RescaledProcess


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


SOURCE = Gaussian(tensor([1.0, -2.0]), tensor([[2.0, 0.5], [0.5, 1.0]]))
TARGET = Samples(torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
SCALING = AffineScaling(tensor([3.0, -1.0]), tensor([2.0, 0.5]))


def test_ends_must_live_in_one_space():
    assert BridgeProblem(SOURCE, TARGET, BrownianMotion(1.0)).dim == 2
    three = Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(InvalidInputError, match=r"source has 2 columns, target has 3.*common coordinates"):
        BridgeProblem(SOURCE, three, BrownianMotion(1.0))
    with pytest.raises(InvalidInputError, match="reference process has dimension 3, the data have 2"):
        BridgeProblem(SOURCE, TARGET, BrownianMotion([1.0, 2.0, 3.0]))


def test_samples_must_have_one_dtype():
    said = r"source has dtype torch\.float64, target has dtype torch\.float32; convert one to that of the other"
    with pytest.raises(InvalidInputError, match=said):
        BridgeProblem(TARGET, Samples(TARGET.rows.float()), BrownianMotion(1.0))


def test_a_linear_reference_is_handed_out_as_one():
    reference = OrnsteinUhlenbeck(1.0, 1.0)
    assert BridgeProblem(SOURCE, TARGET, reference).linear_reference is reference
    curved = BridgeProblem(SOURCE, TARGET, DriftProcess(lambda t, x: -x.sin(), 1.0))
    with pytest.raises(UnsupportedError, match=r"which DriftProcess does not have: use a .*BrownianMotion"):
        _ = curved.linear_reference


def test_ends_and_reference_change_units_together():
    mixture = GaussianMixture(
        tensor([0.3, 0.7]), tensor([[0.0, 1.0], [2.0, 3.0]]), torch.eye(2).double().expand(2, 2, 2)
    )
    problem = BridgeProblem(mixture, TARGET, OrnsteinUhlenbeck(tensor([[1.0, 0.4], [-0.2, 0.8]]), 0.7, 1.0, 1.5))
    scaled = problem.rescaled(SCALING)
    assert scaled.reference.horizon == 1.5
    assert torch.equal(scaled.target.rows, SCALING.to_model(TARGET.rows))
    torch.testing.assert_close(scaled.source.means, SCALING.to_model(mixture.means))
    x, t = TARGET.rows, 0.4
    drift = scaled.reference.drift(t, SCALING.to_model(x)) * SCALING.scale
    torch.testing.assert_close(drift, problem.reference.drift(t, x))
    noise = scaled.reference.scale(t)(x) * SCALING.scale
    torch.testing.assert_close(noise, problem.reference.scale(t)(x))
    # p(x) = p̃((x − m)/s) / ∏ s: densities differ by the constant log ∏ s = 0 here
    torch.testing.assert_close(scaled.source.log_density(SCALING.to_model(x)), mixture.log_density(x))


def test_a_drift_of_ones_own_changes_units_too():
    problem = BridgeProblem(SOURCE, TARGET, DriftProcess(lambda t, x: -x.sin(), 1.0))
    assert isinstance(problem.rescaled(SCALING).reference, RescaledProcess)


def assembled(kind: type, **parts: object) -> None:
    """``kind(**parts)`` as a user runs it, without the type checks of this test suite."""
    problem = object.__new__(kind)
    for name, part in parts.items():
        object.__setattr__(problem, name, part)
    problem.__post_init__()


@pytest.mark.parametrize(
    ("kind", "parts", "said"),
    [
        (
            BridgeProblem,
            (BrownianMotion(1.0), SOURCE, TARGET),
            "source must be a distribution such as .*got a BrownianMotion",
        ),
        (
            BridgeProblem,
            (SOURCE, TARGET.rows, BrownianMotion(1.0)),
            r"target must be a distribution .*Samples\(rows\).*a Tensor",
        ),
        (BridgeProblem, (SOURCE, TARGET, 1.0), "reference must be a process such as .*got a float"),
        (ControlProblem, (SOURCE, BrownianMotion(1.0)), "process must be a process such as .*got a Gaussian"),
        (ControlProblem, (BrownianMotion(1.0), TARGET.rows), "start must be a distribution such as .*got a Tensor"),
    ],
)
def test_parts_in_the_wrong_places_are_named(kind, parts, said):
    names = ("source", "target", "reference") if kind is BridgeProblem else ("process", "start")
    with pytest.raises(InvalidInputError, match=said):
        assembled(kind, **dict(zip(names, parts, strict=True)))
