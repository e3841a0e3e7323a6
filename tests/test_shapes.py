"""Samples of any shape: flat inside, in their shape outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.controls import NetworkControl, UNet
from sbridge.errors import InvalidInputError
from sbridge.evaluation import EvaluationBudget, evaluate
from sbridge.random import generator

SHAPE = (1, 2, 4)
X0 = torch.randn(120, *SHAPE, generator=generator(0))
X1 = 1.5 * torch.randn(100, *SHAPE, generator=generator(1)) + 1.0


@pytest.fixture(scope="module")
def pair():
    shaped = sb.fit(X0, X1, solver=sb.GaussianBridge(), seed=0)
    return shaped, sb.fit(X0.flatten(1), X1.flatten(1), solver=sb.GaussianBridge(), seed=0)


def test_shaped_samples_give_the_numbers_of_flat_ones(pair):
    shaped, flat = pair
    rows = X0.flatten(1)
    assert shaped.shape == SHAPE
    assert flat.shape is None
    assert torch.equal(shaped.transport(X0, seed=1), flat.transport(rows, seed=1).unflatten(1, SHAPE))
    assert torch.equal(shaped.transport(rows, seed=1), flat.transport(rows, seed=1))  # flat rows stay flat
    assert torch.equal(shaped.conditional_mean(X0, seed=1).flatten(1), flat.conditional_mean(rows, seed=1))
    found = shaped.interpolate(X0, [0.2, 0.5], seed=1)
    assert found.shape == (2, 120, *SHAPE)
    assert torch.equal(found.flatten(2), flat.interpolate(rows, [0.2, 0.5], seed=1))
    back = shaped.reversed().transport(X1.numpy(), seed=2)
    assert torch.equal(back.flatten(1), flat.reversed().transport(X1.flatten(1), seed=2))


def test_a_report_is_that_of_flat_rows(pair):
    shaped, flat = pair
    few = EvaluationBudget(rows=50, fit_rows=50, paths=20)
    first = evaluate(shaped, X0, X1, seed=0, x0_fit=X0, baselines=(), limits=few)
    second = evaluate(flat, X0.flatten(1), X1.flatten(1), seed=0, x0_fit=X0.flatten(1), baselines=(), limits=few)
    assert first.tasks == second.tasks


def test_the_shape_is_saved(pair, tmp_path):
    pair[0].save(tmp_path / "bridge")
    loaded = sb.load(tmp_path / "bridge")
    assert loaded.shape == SHAPE
    assert loaded.transport(X0, seed=1).shape == X0.shape


def test_courses_and_stored_images_keep_their_shape(tmp_path):
    course = sb.fit_course([X0, X1, X1 + 1.0], [0.0, 1.0, 3.0], solver=sb.GaussianBridge(), seed=0)
    assert course.interpolate(X0, 0.0, 2.0, seed=0).shape == X0.shape
    np.save(tmp_path / "x0.npy", X0.numpy())
    stored = sb.StoredRows(tmp_path / "x0.npy")
    assert (stored.dim, stored.sample_shape) == (8, SHAPE)
    assert torch.equal(stored.part(200, 0), X0.flatten(1))
    assert sb.fit(stored, X1, solver=sb.GaussianBridge(), seed=0).shape == SHAPE


def test_generated_samples_have_the_shape_of_the_data():
    few = sb.TimeGrid.uniform(8)
    bridge = sb.diffuse(X0, solver=sb.ScoreMatching(updates=2, network=UNet(SHAPE, width=8), grid=few), seed=0)
    assert sb.generate(bridge, 3, seed=0).shape == (3, *SHAPE)


def test_other_shapes_are_told(pair, tmp_path):
    with pytest.raises(InvalidInputError, match=r"samples of shape \(2, 4\), but the bridge was fitted on samples of"):
        pair[0].transport(X0[:, 0], seed=0)
    with pytest.raises(InvalidInputError, match="but the bridge was fitted on rows of 8 numbers"):
        pair[1].transport(X0, seed=0)
    with pytest.raises(InvalidInputError, match=r"samples of x0 have shape \(1, 2, 4\), those of x1 flat rows"):
        sb.fit(X0, X1.flatten(1))
    with pytest.raises(InvalidInputError, match=r"those of x1 shape \(1, 2, 2\)"):
        sb.fit(X0, X1[..., :2])
    with pytest.raises(InvalidInputError, match=r"UNet is for samples of shape \(2, 2, 2\), and the data have shape"):
        sb.fit(X0, X1, solver=sb.IMF(network=UNet((2, 2, 2))))
    with pytest.raises(InvalidInputError, match="UNet is for samples of shape"):
        sb.diffuse(X0, solver=sb.ScoreMatching(network=UNet((2, 2, 2))))
    with pytest.raises(InvalidInputError, match="x1_fit has samples of shape"):
        evaluate(pair[0], X0, X1, seed=0, x1_fit=X1[:, 0])
    with pytest.raises(InvalidInputError, match="those of x1 shape"):
        sb.choose_sigma(X0, X1[:, 0])
    np.save(tmp_path / "x0.npy", X0[:, 0].numpy())
    with pytest.raises(InvalidInputError, match="x0 has samples of shape"):
        evaluate(pair[0], sb.StoredRows(tmp_path / "x0.npy"), X1, seed=0)
    with pytest.raises(InvalidInputError, match="for samples of 8 numbers, and the data have 9"):
        UNet(SHAPE)(9)
    with pytest.raises(InvalidInputError, match="divisible by 4 for 3 levels"):
        UNet((1, 8, 6), levels=3)
    with pytest.raises(InvalidInputError, match="multiple of 8"):
        UNet(SHAPE, width=12)


def test_a_unet_treats_rows_alone_and_each_time_by_itself():
    control = NetworkControl(UNet(SHAPE, width=8, depth=2), 8, horizon=1.0)
    x = X0[:6].flatten(1)
    assert not control(0.3, x).any()  # zero at the start
    with torch.no_grad():
        for weights in control.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator(weights.numel())) / weights.shape[-1])
    times = torch.linspace(0.1, 0.9, 6)
    together = control(times, x)
    alone = torch.cat([control(float(t), x[i : i + 1]) for i, t in enumerate(times)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, control(0.5, x), atol=1e-3)
    for name, weights in control.named_parameters():  # every layer is used
        loss = control(times, x).square().sum()
        (slope,) = torch.autograd.grad(loss, weights)
        assert slope.abs().max() > 0, name


def test_a_unet_is_saved(tmp_path):
    solver = sb.IMF(pretraining=2, stages=1, updates=1, network=UNet(SHAPE, width=8), grid=sb.TimeGrid.uniform(8))
    bridge = sb.fit(X0, X1, solver=solver, seed=0)
    bridge.save(tmp_path / "bridge")
    assert torch.equal(sb.load(tmp_path / "bridge").transport(X0[:3], seed=0), bridge.transport(X0[:3], seed=0))
