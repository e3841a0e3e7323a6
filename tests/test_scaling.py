"""Scalings: what the recipes choose, and that they undo themselves."""

import pytest
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import AffineScaling, CommonScale, NoScaling, PerCoordinate
from sbridge.processes import BrownianMotion, rescale

RECIPES = {"none": NoScaling(), "common": CommonScale(), "per coordinate": PerCoordinate()}


def ends(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(400, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 7.0
    x1 = torch.randn(900, 3, generator=g, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.3]) - 4.0
    return x0.to(dtype), x1.to(dtype)


@pytest.mark.parametrize("recipe", RECIPES)
def test_there_and_back(recipe, dtype):
    x0, x1 = ends(dtype)
    scaling = RECIPES[recipe](x0, x1)
    model = scaling.to_model(x0)
    assert model.dtype == scaling.to_data(model).dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(scaling.to_data(model), x0, rtol=tolerance, atol=tolerance)
    assert scaling.shift.dtype == scaling.scale.dtype == torch.float64
    assert scaling.shift.shape == (3,)
    shape = (3,) if recipe == "per coordinate" else (1,)
    assert scaling.scale.shape == shape


def test_no_scaling_changes_no_bit(dtype):
    x0, x1 = ends(dtype)
    scaling = NoScaling()(x0, x1)
    assert torch.equal(scaling.to_model(x0), x0)
    assert torch.equal(scaling.to_data(x1), x1)


def test_common_scale_is_the_mean_deviation_of_the_pooled_rows():
    x0, x1 = ends()
    pooled = torch.cat([x0, x1])
    scaling = CommonScale()(x0, x1)
    torch.testing.assert_close(scaling.shift, pooled.mean(0))
    torch.testing.assert_close(scaling.scale, pooled.std(0).mean().reshape(1))
    model = scaling.to_model(pooled)
    torch.testing.assert_close(model.std(0).mean(), torch.tensor(1.0, dtype=torch.float64))
    wanted = torch.cdist(pooled[:20], pooled[:20]) / float(scaling.scale)
    torch.testing.assert_close(torch.cdist(model[:20], model[:20]), wanted)


def test_per_coordinate_standardises_the_pooled_rows():
    x0, x1 = ends()
    model = PerCoordinate()(x0, x1).to_model(torch.cat([x0, x1]))
    torch.testing.assert_close(model.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.std(0), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 0.1, 1.1, 1e6 + 0.1])
def test_constant_columns_are_found_though_their_mean_rounds(value, dtype):
    """The standard deviation of 1000 times 1.1 is 2e-16 in float64: nothing to divide by."""
    x0 = torch.full((500, 2), value, dtype=dtype)
    x1 = x0.clone()
    with pytest.raises(InvalidInputError, match=r"every column is constant.*NoScaling\(\)"):
        CommonScale()(x0, x1)
    with pytest.raises(InvalidInputError, match=r"columns \[0, 1\] are constant"):
        PerCoordinate()(x0, x1)
    x1[:, 1] += torch.randn(500, generator=torch.Generator().manual_seed(1)).to(dtype)
    with pytest.raises(InvalidInputError, match=r"columns \[0\] are constant.*drop them"):
        PerCoordinate()(x0, x1)
    wanted = torch.cat([x0, x1])[:, 1].double().std() / 2
    torch.testing.assert_close(CommonScale()(x0, x1).scale, wanted.reshape(1))
    NoScaling()(x0, x1)


def test_a_column_may_be_constant_at_one_end():
    x0, x1 = ends()
    x0[:, 0], x1[:, 1] = 1.0, 2.0
    for recipe in (CommonScale(), PerCoordinate()):
        assert bool((recipe(x0, x1).scale > 0).all())


def test_many_constant_columns_are_named_up_to_ten():
    x = torch.zeros(5, 30)
    with pytest.raises(InvalidInputError, match=r"columns \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\] are constant"):
        PerCoordinate()(x, x)


def test_scaling_holds_the_change_of_units_of_a_single_row(dtype):
    scaling = AffineScaling(torch.tensor([1.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    x = torch.tensor([[9.0]], dtype=dtype)
    assert scaling.to_model(x).item() == 2.0
    assert scaling.to_data(x).item() == 37.0


def test_a_dense_sigma_that_depends_on_time_is_scaled_by_rows():
    level = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    process = BrownianMotion(lambda t: (1.0 + t)[:, None, None] * level)
    scaling = AffineScaling(torch.tensor([3.0, -1.0]).double(), torch.tensor([2.0, 5.0]).double())
    found = rescale(process, scaling).scale(0.5).values
    torch.testing.assert_close(found, 1.5 * level / torch.tensor([[2.0], [5.0]]).double())
