import json
import math

import numpy as np
import pytest
import torch
from families import (
    DIAGONAL,
    DIM,
    MEAN,
    RATE,
    SIGMA,
    Restoring,
    dense,
    double_well,
    states,
    tensor,
    wave,
    wave_matrix,
)

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.processes import (
    BrownianMotion,
    CosineSchedule,
    DriftProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
    check_process,
)
from sbridge.storage.registry import decode, encode


@pytest.mark.parametrize(
    "forms",
    [
        [0.7, np.float64(0.7), np.array([0.7]), torch.tensor(0.7, dtype=torch.float64), [0.7], [[0.7]]],
        [DIAGONAL, tuple(DIAGONAL), np.array(DIAGONAL), tensor(DIAGONAL)],
        [SIGMA.tolist(), SIGMA.numpy(), SIGMA],
    ],
)
def test_coefficients_in_any_container(forms):
    laws = [dense(OrnsteinUhlenbeck(form, form, 0.0).transition(0.0, 1.0)) for form in forms]
    for law in laws[1:]:
        for found, wanted in zip(law, laws[0], strict=True):
            assert torch.equal(found, wanted)


def test_a_process_keeps_its_own_numbers():
    mine = SIGMA.clone()
    process = BrownianMotion(mine)
    mine.zero_()
    assert torch.equal(process.scale(0.0).values, SIGMA)


DIMENSIONS = [
    (BrownianMotion(1.0), None),
    (BrownianMotion(DIAGONAL), 3),
    (BrownianMotion(wave), None),
    (BrownianMotion(wave_matrix), 3),
    (OrnsteinUhlenbeck(1.0, 1.0), None),
    (OrnsteinUhlenbeck(1.0, 1.0, MEAN), 3),
    (OrnsteinUhlenbeck(RATE, 1.0), 3),
    (VariancePreserving(), None),
    (VariancePreserving(stationary_std=DIAGONAL), 3),
    (VarianceExploding(0.1, DIAGONAL), 3),
    (DriftProcess(lambda t, x: -x, 1.0), None),
    (DriftProcess(lambda t, x: -x, 1.0, dimension=4), 4),
    (DriftProcess(lambda t, x: -x, SIGMA), 3),
]


@pytest.mark.parametrize(("process", "dim"), DIMENSIONS, ids=map(str, range(len(DIMENSIONS))))
def test_the_dimension_that_coefficients_fix(process, dim):
    assert process.dim == dim


BAD = {
    "sigma zero": (lambda: BrownianMotion(0.0), "sigma must be positive, got 0"),
    "sigma negative": (lambda: BrownianMotion([1.0, -2.0]), "sigma must be positive, got -2"),
    "sigma nan": (lambda: BrownianMotion(float("nan")), "sigma must be finite"),
    "sigma singular": (
        lambda: BrownianMotion([[1.0, 2.0], [2.0, 4.0]]),
        "sigma must be an invertible matrix",
    ),
    "sigma nearly singular": (lambda: BrownianMotion([[1.0, 0.0], [0.0, 1e-9]]), r"1\.0e-09 times"),
    "sigma null": (lambda: BrownianMotion([[0.0, 0.0], [0.0, 0.0]]), "invertible"),
    "sigma tiny": (lambda: BrownianMotion(1e-160), "outside the range 1e-30 to 1e"),
    "sigma huge": (lambda: BrownianMotion([1.0, 1e40]), "outside the range 1e-30 to 1e"),
    "sigma of one column tiny": (lambda: BrownianMotion([1.0, 1e-160]), "sigma is 1e-160, outside the range"),
    "sigma shape": (lambda: BrownianMotion([[1.0, 2.0]]), r"got shape \(1, 2\)"),
    "sigma ragged": (lambda: BrownianMotion([[1.0], [1.0, 2.0]]), "sigma must be a number"),
    "sigma text": (lambda: BrownianMotion("wide"), "sigma must be a number"),
    "sigma empty": (lambda: BrownianMotion([]), "sigma must be a number"),
    "sigma(t) of numbers": (lambda: BrownianMotion(lambda t: 1.0), "torch functions"),
    "sigma(t) constant": (lambda: BrownianMotion(lambda t: torch.ones(2)), r"n = 5 it returned \(2,\)"),
    "sigma(t) negative": (
        lambda: BrownianMotion(lambda t: 0.5 - t),
        r"sigma\(t\) must be positive, got -0.5",
    ),
    "sigma(t) singular": (lambda: BrownianMotion(lambda t: torch.ones(len(t), 2, 2)), "invertible"),
    "sigma(t) infinite": (lambda: BrownianMotion(lambda t: 1.0 / t), "finite"),
    "sigma(t) shape": (lambda: BrownianMotion(lambda t: torch.ones(len(t), 2, 3)), "must return a tensor"),
    "sigma(t) dimension": (lambda: BrownianMotion(lambda t: torch.ones(len(t), len(t))), "dimension 2 at some"),
    "horizon zero": (lambda: BrownianMotion(1.0, 0.0), "horizon must be a positive number, got 0.0"),
    "horizon infinite": (lambda: OrnsteinUhlenbeck(1.0, 1.0, 0.0, math.inf), "horizon"),
    "rate text": (lambda: OrnsteinUhlenbeck("fast", 1.0), "rate must be a number"),
    "rate shape": (lambda: OrnsteinUhlenbeck(torch.ones(2, 2, 2), 1.0), "rate .* got shape"),
    "rate explodes": (lambda: OrnsteinUhlenbeck(-400.0, 1.0), "leaves the floating-point range"),
    "rate matrix explodes": (
        lambda: OrnsteinUhlenbeck(-400.0 * torch.eye(2), 1.0),
        "leaves the floating-point",
    ),
    "mean matrix": (
        lambda: OrnsteinUhlenbeck(1.0, 1.0, [[1.0, 2.0], [3.0, 4.0]]),
        "mean must be a number or a vector",
    ),
    "dimensions": (lambda: OrnsteinUhlenbeck(RATE, [1.0, 2.0]), "rate: 3, sigma: 2"),
    "dimension of the mean": (lambda: VariancePreserving(stationary_std=[1.0, 2.0], mean=MEAN), "mean: 3"),
    "kappa": (lambda: VariancePreserving(stationary_std=-1.0), "stationary_std must be positive"),
    "beta": (lambda: LinearSchedule(0.0, 1.0), "beta_min must be a positive number, got 0"),
    "cosine offset": (lambda: CosineSchedule(0.0), "offset must be a positive number"),
    "cosine max_rate": (lambda: CosineSchedule(0.5, 0.5), "max_rate must exceed"),
    "levels equal": (lambda: VarianceExploding(1.0, 1.0), "sigma_min must be below sigma_max"),
    "levels reversed": (lambda: VarianceExploding([0.1, 2.0], 1.0), "sigma_min must be below"),
    "level negative": (lambda: VarianceExploding(-1.0, 1.0), "sigma_min must be positive"),
    "drift dimension": (lambda: DriftProcess(lambda t, x: x, SIGMA, dimension=2), "agrees with sigma, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_coefficients(case):
    make, said = BAD[case]
    with pytest.raises(InvalidInputError, match=said):
        make()


# --- a drift of one's own


@pytest.mark.parametrize("sigma", [0.7, DIAGONAL, SIGMA, wave, wave_matrix], ids=map(str, range(5)))
def test_a_drift_of_ones_own(sigma):
    process = DriftProcess(double_well, sigma, 2.0)
    check_process(process, DIM, seed=0)
    torch.testing.assert_close(process.drift(0.5, states()), double_well(0.5, states()))


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (lambda t, x: x.sum(1), r"returned \(6,\) torch.float32"),
        (lambda t, x: x.double(), r"returned \(6, 3\) torch.float64"),
        (lambda t, x: 0.0, "returned float"),
    ],
    ids=["shape", "dtype", "number"],
)
def test_a_drift_must_fit_its_states(drift, said):
    with pytest.raises(InvalidInputError, match=said):
        DriftProcess(drift, 1.0).drift(0.5, states(dtype=torch.float32))


def test_a_drift_of_a_registered_class_can_be_saved():
    tree, tensors = encode(DriftProcess(Restoring(2.0), SIGMA, 1.5, 3))
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(back.drift(0.1, states()), -2.0 * states())
    assert (back.horizon, back.dim) == (1.5, 3)
    with pytest.raises(UnsupportedError, match="drift_function is a function"):
        encode(DriftProcess(double_well, 1.0))
