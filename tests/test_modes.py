"""What a caller has set in torch (gradient or inference mode, autocast, defaults) does not change results."""

from contextlib import contextmanager

import pytest
import torch
from small_fits import FITS, X0, solved

from sbridge.modes import owned, standard_modes


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def look(fitted):
    rows = X0[:10].astype(str(fitted.forward.start.sample(1, torch.Generator("cpu")).dtype)[6:])
    return fitted.interpolate(rows, [0.3, fitted.horizon], seed=1), fitted.current_velocity(0.4, rows)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_does_not_depend_on_the_modes_of_the_caller(fit):
    want = look(FITS[fit](None))
    for name, mode in MODES.items():
        with mode():
            fitted = FITS[fit](None)
        for found, wanted in zip(look(fitted), want, strict=True):
            assert torch.equal(found, wanted), name
        with mode():
            looked = look(fitted)
        for found, wanted in zip(looked, want, strict=True):
            assert torch.equal(found, wanted), f"looked at under {name}"


@pytest.mark.parametrize("solver", ["AdjointMatching", "LogVariance", "RelativeEntropy", "ReciprocalAdjointMatching"])
def test_a_control_problem_does_not_depend_on_the_modes_of_the_caller(solver):
    want = solved(None, solver).sample(20, seed=1).x
    for name, mode in MODES.items():
        with mode():
            solution = solved(None, solver)
            inside = solution.sample(20, seed=1).x
        assert torch.equal(solution.sample(20, seed=1).x, want), name
        assert torch.equal(inside, want), f"sampled under {name}"


def test_the_modes_of_the_caller_return():
    with torch.no_grad(), torch.device("meta"), default_dtype(), torch.autocast("cpu"):
        for gradients in (True, False, None):
            with standard_modes(gradients=gradients):
                assert torch.is_grad_enabled() is bool(gradients)
                assert (torch.empty(1).dtype, torch.empty(1).device.type) == (torch.float32, "cpu")
                assert not torch.is_autocast_enabled("cpu")
            with pytest.raises(KeyError), standard_modes(gradients=gradients):
                raise KeyError
            assert not torch.is_grad_enabled()
            assert (torch.empty(1).dtype, torch.empty(1).device.type) == (torch.float64, "meta")
            assert torch.is_autocast_enabled("cpu")


def test_owned_tensors_can_be_differentiated_wherever_they_were_made():
    with torch.inference_mode():
        held = owned(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    (held * x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
