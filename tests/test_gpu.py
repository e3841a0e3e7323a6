"""What only a real GPU can show: run with ``pytest -m gpu``, and skipped where there is none."""

import math

import pytest
import torch
from small_fits import CONTROL_SOLVERS, FITS, X0, X1, given, solved

import sbridge as sb
from sbridge.random import ROW_BLOCK, NormalNoise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", 0)


def rows_of(bridge: sb.Bridge) -> torch.Tensor:
    law = bridge.backward.start if isinstance(bridge.forward.start, sb.Density) else bridge.forward.start
    return given(X0, "cpu").to(law.sample(1, torch.Generator()).dtype)


@pytest.mark.parametrize("name", FITS)
def test_fits_run_and_repeat_their_draws(name, gpu):
    bridge = FITS[name](gpu)
    rows = rows_of(bridge.to("cpu")).to(gpu)
    for draw in (bridge.transport, bridge.reversed().transport):
        found = draw(rows, seed=1)
        assert found.device == gpu
        assert bool(found.isfinite().all())
        assert torch.equal(found, draw(rows, seed=1))


@pytest.mark.parametrize("name", FITS)
def test_a_moved_bridge_is_the_same_function(name, gpu):
    bridge = FITS[name]("cpu")
    moved, rows = bridge.to(gpu), rows_of(bridge)
    for call in ("current_velocity", "osmotic_velocity", "score"):
        found, wanted = getattr(moved, call)(0.4, rows.to(gpu)), getattr(bridge, call)(0.4, rows)
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONTROL_SOLVERS)
def test_controls_run(name, gpu):
    solution = solved(gpu, name)
    assert solution.sample(5, seed=1).x.device == gpu
    assert math.isfinite(sb.evaluate_control(solution, n=64, seed=1).objective.value)


def test_noise_does_not_depend_on_chunks(gpu):
    whole = NormalNoise(3, 40, 3 * ROW_BLOCK + 5, 2, device=gpu)
    part = whole.rows(ROW_BLOCK, 2 * ROW_BLOCK)
    assert torch.equal(part.stored(), whole.stored()[:, ROW_BLOCK : 2 * ROW_BLOCK])
    assert torch.equal(part.step(35), whole.step(35)[ROW_BLOCK : 2 * ROW_BLOCK])


def test_scores_agree_with_those_of_the_cpu(gpu):
    draw = torch.Generator().manual_seed(0)
    x0, x1 = (shift + torch.randn(600, 2, generator=draw) for shift in (0.0, 2.0))
    scores = []
    for place in ("cpu", gpu):
        ends = x0[:300].to(place), x1[:300].to(place)
        bridge = sb.fit(*ends, reference=sb.BrownianMotion(1.0), seed=0)
        report = sb.evaluate(bridge, x0[300:].to(place), x1[300:].to(place), seed=1)
        scores.append([score for task in report.tasks for score in task.scores if score.value is not None])
    for here, there in zip(*scores, strict=True):
        assert abs(here.value - there.value) <= 4.0 * (here.standard_error or 0.0) + 0.05 * abs(here.value), there


def test_files_move_between_devices(gpu, tmp_path):
    bridge = FITS["IMF"](gpu)
    bridge.save(tmp_path / "bridge")
    here, there = sb.load(tmp_path / "bridge"), sb.load(tmp_path / "bridge", device="cuda")
    rows = given(X1, "cpu")
    assert (here.device, there.device) == (rows.device, gpu)
    torch.testing.assert_close(there.score(0.4, rows.to(gpu)).cpu(), here.score(0.4, rows), rtol=1e-3, atol=1e-4)
