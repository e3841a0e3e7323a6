"""On another device everything stays there, and nothing depends on the default device. The device is simulated."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from simulated_device import DEVICE, DeviceMixError, simulated_device
from small_fits import CONTROL_SOLVERS, FITS, TINY, X0, X1, far, gaussian, given, mixture, solved
from torch import Tensor

import sbridge as sb
from sbridge.errors import InvalidInputError
from sbridge.metrics import MMD, STANDARD_METRICS, BuresUVP, HalfEnergyDistance
from sbridge.parts import visible_tensors
from sbridge.solutions import Bridge
from sbridge.solvers import check_solver
from sbridge.storage.registry import decode, encode

PACKAGE = Path(sb.__file__).parent


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    with simulated_device() as made:
        yield made


def there(*tensors: Tensor) -> None:
    for one in tensors:
        assert one.device == DEVICE


def alike(found: Tensor, wanted: Tensor) -> None:
    """On the device, what a tensor on the CPU is: both draw the same numbers, and round alike but for gradients."""
    there(found)
    torch.testing.assert_close(found.cpu(), wanted)


# --- the simulated device refuses what CUDA refuses


def test_operations_on_two_devices_are_refused(device):
    here, far = torch.ones(3), torch.ones(3, device=device)
    for mixed in (
        lambda: here + far,
        lambda: far.mul_(here),
        lambda: here.copy_(far) + far,
        lambda: torch.cat([here, far]),
        lambda: torch.stack([far[0], torch.ones(())]),
        lambda: torch.where(here > 0, far, far),
        lambda: far.gather(0, torch.arange(2)),
        lambda: here[torch.arange(2, device=device)],
        lambda: torch.add(here, 1.0, out=far),
        lambda: torch.nn.Linear(3, 2)(far),
    ):
        with pytest.raises(DeviceMixError):
            mixed()
    there(
        far + 1.0, far * torch.tensor(2.0), far[torch.tensor([0, 2])], here.to(far), torch.as_tensor([1.0]).to(device)
    )
    far[torch.tensor([True, False, False])] = 2.0
    assert far.tolist() == [2.0, 1.0, 1.0]
    assert f"{far[0]:.1f}" == "2.0"


def test_generators_draw_on_their_own_device_alone(device):
    here, far = torch.Generator(), torch.Generator(device)
    assert (far.device, here.device) == (DEVICE, torch.device("cpu"))
    for mixed in (
        lambda: torch.randn(3, generator=far),
        lambda: torch.randn(3, generator=here, device=device),
        lambda: torch.empty(3, device=device).normal_(generator=here),
        lambda: torch.multinomial(torch.ones(3, device=device), 2, generator=here),
        lambda: torch.randperm(3, generator=far),
    ):
        with pytest.raises(DeviceMixError, match="generator"):
            mixed()
    alike(torch.randn(3, generator=far, device=device), torch.randn(3, generator=here))


def test_numpy_cannot_read_the_device(device):
    far = torch.ones(3, device=device)
    for read in (far.numpy, lambda: np.asarray(far)):
        with pytest.raises(DeviceMixError, match="copy it to the CPU first"):
            read()
    assert np.asarray(far.cpu()).tolist() == [1.0, 1.0, 1.0]


def test_networks_train_on_the_device_as_on_the_cpu(device):
    weights = []
    for place in ("cpu", device):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(16, 3, generator=draw).to(place)
        net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)
        net = net.to(place)
        adam = torch.optim.Adam(net.parameters(), fused=True)
        for _ in range(3):
            adam.zero_grad()
            net(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            adam.step()
        weights.append([parameter.detach() for parameter in net.parameters()])
    for found, wanted in zip(*reversed(weights), strict=True):
        alike(found, wanted)


# --- every solver stays on the device of the data


def states(bridge: Bridge, rows: Tensor) -> list[Tensor]:
    """States and functions in both directions."""
    times = torch.full((len(rows),), 0.3, dtype=torch.float64, device=rows.device)
    return [
        bridge.transport(rows, seed=1),
        bridge.interpolate(rows, [0.25, 0.6], seed=2),
        bridge.reversed().transport(rows, seed=3),
        replace(bridge.forward, grid=sb.TimeGrid.uniform(3)).simulate(rows, seed=4).x,
        bridge.current_velocity(0.4, rows),
        bridge.osmotic_velocity(times, rows),
        bridge.score(times, rows),
    ]


def rows_of(bridge: Bridge, place: torch.device | str) -> Tensor:
    law = bridge.backward.start if isinstance(bridge.forward.start, sb.Density) else bridge.forward.start
    return given(X0[:6], place).to(law.sample(1, torch.Generator(place)).dtype)


@pytest.mark.parametrize("name", FITS)
def test_fits_stay_on_the_device_of_the_data_and_move(name, device):
    bridge, wanted = FITS[name](device), FITS[name]("cpu")
    assert (bridge.device, wanted.device) == (device, torch.device("cpu"))
    rows, moved = rows_of(wanted, "cpu"), wanted.to(device)
    expected = states(wanted, rows)
    for one in (bridge, moved):
        for found, here in zip(states(one, rows.to(device)), expected, strict=True):
            alike(found, here)
    assert (moved.device, moved.forward.device, moved.backward.device, wanted.device) == (*[device] * 3, rows.device)
    assert moved.reference is moved.backward.process
    for back in (moved.to("cpu"), wanted.to("cpu")):
        assert all(map(torch.equal, states(back, rows), expected))


@pytest.mark.parametrize("name", CONTROL_SOLVERS)
def test_controls_stay_on_the_device_of_the_start(name, device):
    solution, wanted = solved(device, name), solved("cpu", name)
    found = sb.evaluate_control(solution, n=64, seed=1)
    assert str(found) == str(sb.evaluate_control(wanted, n=64, seed=1))
    alike(solution.sample(5, seed=1).x, wanted.sample(5, seed=1).x)


CHECKED = {
    "LogVariance": sb.LogVariance(updates=3, grid=sb.TimeGrid.uniform(3), network=sb.networks.MLP(8, 1)),
    "SinkhornBridge": sb.SinkhornBridge(),
    "IMF": sb.IMF(pretraining=2, stages=1, updates=2, refresh=2, pairs=32, **TINY),
}


@pytest.mark.parametrize(
    "name", ["SinkhornBridge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LogVariance", "IMF"))]
)
def test_solvers_keep_their_rules_on_any_device(name, device):
    """Saved, resumed and loaded states are there too."""
    ends = sb.Samples(X0), sb.Samples(X1)
    problem = sb.BridgeProblem(*ends, sb.BrownianMotion(1.0)) if name != "LogVariance" else solved("cpu", name).problem
    check_solver(CHECKED[name], problem.to(device), seed=0)
    with torch.device(device):
        check_solver(CHECKED[name], problem, seed=0)


def scored(place: torch.device | str) -> tuple[str, str]:
    draw = np.random.default_rng(1)
    held_out = [given(draw.standard_normal((70, 2)).astype(np.float32) + shift, place) for shift in (0.0, 1.5)]
    bridge = sb.fit(
        given(X0, place),
        given(X1, place),
        reference=sb.BrownianMotion(1.0),
        solver=sb.MixtureBridge((2,), iterations=3, grid=sb.TimeGrid.uniform(10)),
        seed=0,
    )
    return sb.evaluate(bridge, *held_out, seed=1).text(), sb.certify(bridge, *held_out, seed=1).text()


@pytest.mark.slow
def test_scores_and_certificates_are_those_of_the_cpu(device):
    assert scored(device) == scored("cpu")


# --- saving and loading


@pytest.mark.parametrize("name", ["default", "IMF", "GaussianMixture", "diffuse"])
def test_files_do_not_know_devices(name, device, tmp_path):
    bridge, rows = FITS[name]("cpu"), None
    bridge.to(device).save(tmp_path / "there")
    rows = rows_of(bridge, "cpu")
    here, there = sb.load(tmp_path / "there"), sb.load(tmp_path / "there", device=device)
    assert (here.device, there.device) == (rows.device, device)
    assert torch.equal(here.transport(rows, seed=1), bridge.transport(rows, seed=1))
    alike(there.transport(rows.to(device), seed=1), bridge.transport(rows, seed=1))


def test_controls_load_where_the_problem_is(device, tmp_path):
    solution = solved("cpu", "LogVariance")
    solution.to(device).save(tmp_path / "control")
    wanted, problem = solution.sample(5, seed=1).x, solution.problem
    assert torch.equal(sb.load_control(tmp_path / "control", problem).sample(5, seed=1).x, wanted)
    for there in (
        sb.load_control(tmp_path / "control", problem.to(device)),
        sb.load_control(tmp_path / "control", problem, device=device),
        solution.to(device),
    ):
        alike(there.sample(5, seed=1).x, wanted)
        assert there.problem.start.device == device


def test_networks_are_decoded_where_their_weights_are(device):
    control = solved(device, "LogVariance").control
    for found, wanted in zip(visible_tensors(decode(*encode(control))), visible_tensors(control), strict=True):
        alike(found.detach(), wanted.detach().cpu())


def test_courses_move_and_load(device, tmp_path):
    course = sb.fit_course([X0, X1, X0], [0.0, 1.0, 3.0], sigma=1.0)
    course.to(device).save(tmp_path)
    wanted = course.interpolate(X0[:5], 0.0, 2.0, seed=1)
    for there in (course.to(device), sb.Course.load(tmp_path, device=device)):
        alike(there.interpolate(X0[:5], 0.0, 2.0, seed=1), wanted)
    assert torch.equal(sb.Course.load(tmp_path).interpolate(X0[:5], 0.0, 2.0, seed=1), wanted)


def test_what_a_device_needs(tmp_path):
    bridge = FITS["default"]("cpu")
    for absent in ("cuda:99", "meta", "nonsense"):
        with pytest.raises(InvalidInputError, match=r"device '.*' is not available; use cpu"):
            bridge.to(absent)
        with pytest.raises(InvalidInputError, match="is not available"):
            sb.load(tmp_path / "nothing", device=absent)


# --- rows on another device are refused


def test_rows_on_another_device_are_refused(device):
    bridge, here, far = FITS["default"](device), torch.from_numpy(X0), torch.from_numpy(X0).to(device)
    told = r"x0 is on cpu, the bridge on simulated:0: move one of them, x0.to\('simulated:0'\) or bridge.to\('cpu'\)"
    for refused in (
        lambda: bridge.transport(here, seed=0),
        lambda: bridge.interpolate(here, 0.5, seed=0),
        lambda: bridge.conditional_mean(here, seed=0),
        lambda: sb.evaluate(bridge, here, far, seed=0),
        lambda: sb.certify(bridge, here, far, seed=0),
    ):
        with pytest.raises(InvalidInputError, match=told):
            refused()
    with pytest.raises(InvalidInputError, match=r"x is on cpu, the measure on simulated:0: .* or measure.to\('cpu'\)"):
        bridge.forward.simulate(here, seed=0)
    with pytest.raises(InvalidInputError, match="x is on cpu, the bridge on simulated:0"):
        bridge.score(0.5, here)
    for metric in (*STANDARD_METRICS, HalfEnergyDistance(), MMD(), BuresUVP()):
        with pytest.raises(InvalidInputError, match=r"x is (torch.float32 )?on cpu(,| and) y .*on simulated"):
            metric(here, far, torch.Generator())


def test_ends_on_two_devices_are_refused(device):
    here, far = torch.from_numpy(X0), torch.from_numpy(X1).to(device)
    with pytest.raises(InvalidInputError, match="device cpu, x1 has device simulated:0"):
        sb.fit(here, far)
    with pytest.raises(InvalidInputError, match="the source is on cpu, the target on simulated:0"):
        sb.BridgeProblem(sb.Point(here[0]), sb.Samples(far), sb.BrownianMotion(1.0))
    bridge = FITS["IMF"]("cpu")
    mixed = replace(bridge.forward, start=sb.Samples(far))
    with pytest.raises(InvalidInputError, match=r"parts of one model are on cpu and simulated:0: .*\.to\(device\)"):
        mixed.sample(5, seed=0)
    alike(mixed.to(device).sample(5, seed=0).x, replace(bridge.forward, start=sb.Samples(X1)).sample(5, seed=0).x)


def test_arrays_go_where_the_bridge_is(device):
    bridge = FITS["default"](device)
    wanted = bridge.transport(torch.from_numpy(X0).to(device), seed=1)
    there(wanted)
    assert torch.equal(bridge.transport(X0, seed=1), wanted)
    frame = pandas.DataFrame(X0, columns=["a", "b"])
    np.testing.assert_array_equal(bridge.transport(frame, seed=1).to_numpy(), wanted.cpu().numpy())


@pytest.mark.parametrize("law", [sb.Samples(X0, np.full(40, 0.025)), sb.Point(X0[0]), gaussian("cpu"), mixture("cpu")])
def test_distributions_move(law, device):
    moved = law.to(device)
    assert (moved.device, law.device) == (device, torch.device("cpu"))
    alike(moved.sample(5, torch.Generator().manual_seed(0)), law.sample(5, torch.Generator().manual_seed(0)))
    assert sb.Density(far, 2).to(device).device is None


def test_rows_on_disk_are_read_onto_the_device(device, tmp_path):
    np.save(tmp_path / "rows.npy", X0)
    ends = sb.StoredRows(tmp_path / "rows.npy"), sb.Samples(X1)
    bridge = sb.fit(*ends, reference=sb.BrownianMotion(1.0), solver=sb.GaussianBridge(), seed=0)
    moved = bridge.to(device)
    assert (bridge.device, moved.device, moved.to("cpu").device) == (torch.device("cpu"), device, torch.device("cpu"))
    alike(moved.forward.starts(5, seed=0), bridge.forward.starts(5, seed=0))


# --- nothing depends on the default device


def test_no_module_leaves_a_device_to_the_caller():
    """Below the functions that set the modes of torch, every tensor that is made names its device."""
    made = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
    made |= {"tensor", "zeros", "logspace", "tril_indices", "triu_indices"}
    behind = ("solvers", "identities", "benchmarks", "training")  # run with the modes at their defaults
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in behind:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if name in made:
                    if all(word.arg != "device" for word in node.keywords):
                        found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: torch.{name}")
    assert not found
