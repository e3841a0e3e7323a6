import json

import pytest
import torch
from families import (
    DIM,
    FEW,
    RATE,
    SIGMA,
    Lagging,
    Restoring,
    double_well,
    states,
    tensor,
)
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import AffineScaling
from sbridge.linear import LinearMap
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    LinearProcess,
    OrnsteinUhlenbeck,
    Pinned,
    RescaledLinearProcess,
    RescaledProcess,
    Transition,
    check_process,
    rescale,
)
from sbridge.storage.registry import decode, encode

# --- other units

SCALINGS = {
    "common": AffineScaling(tensor([3.0, -1.0, 0.5]), tensor([2.5])),
    "per coordinate": AffineScaling(tensor([3.0, -1.0, 0.5]), tensor([0.5, 2.0, 7.0])),
}


@pytest.mark.parametrize("units", SCALINGS)
@pytest.mark.parametrize("name", FEW)
def test_rescaling_is_the_change_of_variable(name, units):
    process, scaling = FEW[name], SCALINGS[units]
    scaled = rescale(process, scaling)
    family = RescaledLinearProcess if name == "third party" else type(process)
    assert type(scaled) is family
    assert scaled.horizon == process.horizon
    check_process(scaled, DIM, seed=0)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64) * process.horizon
    x, y = states(seed=1), states(seed=2)
    torch.testing.assert_close(scaled.drift(t, scaling.to_model(x)) * scaling.scale, process.drift(t, x))
    noise = scaled.scale(t)(y) * scaling.scale
    torch.testing.assert_close(noise, process.scale(t)(y))
    law, wanted = scaled.transition(0.3 * t, t), process.transition(0.3 * t, t)
    torch.testing.assert_close(scaling.to_data(law.mean(scaling.to_model(x))), wanted.mean(x))
    size = scaling.scale.expand(3)
    covariance = size[:, None] * law.covariance.expanded(3) * size
    torch.testing.assert_close(covariance, wanted.covariance.expanded(3))


def test_a_common_scale_keeps_a_scalar_sigma_scalar_and_short_steps_exact():
    scaled = rescale(BrownianMotion(2.0), SCALINGS["common"])
    assert scaled.sigma == 0.8
    assert scaled.dim is None
    law = rescale(OrnsteinUhlenbeck(1.0, 2.0, 5.0), SCALINGS["common"]).transition(0.0, 1e-13)
    wanted = 1e-13 * (5.0 - SCALINGS["common"].shift) / 2.5
    torch.testing.assert_close(law.offset, wanted, rtol=1e-12, atol=0)


def test_rescaling_a_drift_of_ones_own(dtype):
    process, scaling = DriftProcess(double_well, SIGMA, 2.0), SCALINGS["per coordinate"]
    scaled = rescale(process, scaling)
    assert isinstance(scaled, RescaledProcess)
    check_process(scaled, DIM, seed=0)
    x, t = states(dtype=dtype), 0.7
    found = scaled.drift(t, scaling.to_model(x)) * scaling.scale.to(dtype)
    torch.testing.assert_close(found, process.drift(t, x), rtol=1e-4, atol=1e-4)
    assert rescale(DriftProcess(double_well, 1.0), scaling).dim == 3


def test_files_keep_rescaled_processes():
    scaled = rescale(DriftProcess(Restoring(2.0), SIGMA), SCALINGS["common"])
    tree, tensors = encode(scaled)
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(back.drift(0.1, states()), scaled.drift(0.1, states()))


# --- the conformance check finds what is broken


class Broken(Lagging):
    """:class:`Lagging` with one law broken by ``fault``."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.horizon = -1.0 if fault == "horizon" else 1.7

    @property
    def dim(self) -> int | None:
        return 2 if self.fault == "dim" else None

    def linear(self, t: float | Tensor) -> LinearMap:
        values = super().linear(t).values
        if self.fault == "linear":
            values = 1.1 * values
        return LinearMap(values.float() if self.fault == "linear dtype" else values)

    def offset(self, t: float | Tensor) -> Tensor:
        value = super().offset(t)
        return {"offset": 1.1 * value, "offset shape": value[..., 0]}.get(self.fault, value)

    def scale(self, t: float | Tensor) -> LinearMap:
        value = super().scale(t)
        if self.fault == "scale shape" and isinstance(t, Tensor) and t.ndim:
            return LinearMap(value.values[0])
        if self.fault == "scale order" and isinstance(t, Tensor) and t.ndim:
            return LinearMap(value.values + t.flip(0).unsqueeze(-1))
        return value * {"scale": 1.05, "singular": 0.0}.get(self.fault, 1.0)

    def transition(self, s: float | Tensor, t: float | Tensor) -> Transition:
        law = super().transition(s, t)
        phi, k, q = law.map.values, law.offset, law.covariance.values
        if self.fault == "covariance":
            q = q + 0.05 * q * (torch.as_tensor(t) - torch.as_tensor(s)).unsqueeze(-1)
        if self.fault == "indefinite":
            q = -q
        if self.fault == "map":
            phi = phi * 1.01
        if self.fault == "leap":
            k = k + 0.1
        if self.fault == "transition shape" and phi.ndim == 2:
            q = q[0]
        if self.fault == "order" and phi.ndim == 2:
            q = q.flip(0)
        return Transition(LinearMap(phi), k, LinearMap(q))


FAULTS = {
    "horizon": "horizon is a positive float",
    "dim": "dim is None or the dimension",
    "linear": "map is 1 \\+ linear Δ up to O",
    "linear dtype": "linear is a float64 map",
    "offset": "offset is offset\\(t\\) Δ up to O",
    "offset shape": "offset is a float64 vector",
    "scale": "covariance is scale scaleᵀ Δ up to O",
    "scale shape": "scale is a float64 map with the leading dimensions",
    "scale order": "scale at times \\(batch,\\) is scale time by time",
    "singular": "scale is invertible",
    "covariance": "Chapman–Kolmogorov: transitions compose \\(covariance\\)",
    "indefinite": "covariance is positive definite",
    "map": "Chapman–Kolmogorov: transitions compose \\(map\\)",
    "leap": "Chapman–Kolmogorov: transitions compose \\(offset\\)",
    "transition shape": "transition's covariance is a float64 map",
    "order": "transition at times \\(batch,\\) is transition time by time",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_names_the_broken_law(fault):
    with pytest.raises(InvalidInputError, match=f"Broken violates the rule .*{FAULTS[fault]}"):
        check_process(Broken(fault), DIM, seed=0)


def test_the_check_finds_a_drift_that_mixes_rows():
    process = DriftProcess(lambda t, x: x - x.mean(0), 1.0)
    with pytest.raises(InvalidInputError, match="row by row"):
        check_process(process, DIM, seed=0)


# The methods that follow from ``transition`` are final, so their faults are put into the package's own classes.
FINAL = {
    "guiding_term is the gradient of log_transition": [(LinearProcess, "guiding_term"), (Pinned, "guiding_term")],
    "conditional_score is the gradient of log_transition": [
        (LinearProcess, "conditional_score"),
        (Pinned, "conditional_score"),
    ],
    "pinned.guiding_term is guiding_term at the sampled point": [(Pinned, "guiding_term")],
    "pinned.conditional_score is conditional_score at the sampled point": [(Pinned, "conditional_score")],
    "pinned mean is the conditional mean": [(Pinned, "mean")],
    "drift is linear": [(LinearProcess, "drift")],
}


@pytest.mark.parametrize("law", FINAL)
def test_the_check_covers_what_follows_from_the_transition(law, monkeypatch):
    process = OrnsteinUhlenbeck(RATE, SIGMA)
    check_process(process, DIM, seed=0)
    for owner, method in FINAL[law]:
        right = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda self, *args, f=right: 1.01 * f(self, *args))
    with pytest.raises(InvalidInputError, match=law):
        check_process(process, DIM, seed=0)


def test_the_check_covers_the_pinned_covariance(monkeypatch):
    monkeypatch.setattr(Pinned, "covariance", property(lambda self: self.behind.covariance))
    with pytest.raises(InvalidInputError, match="pinned covariance is the conditional covariance"):
        check_process(OrnsteinUhlenbeck(RATE, SIGMA), DIM, seed=0)
