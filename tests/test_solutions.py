"""Bridges as users hold them: saved and loaded, both directions, in the units of the data."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from families import LINEAR, is_function_of_time

import sbridge as sb
from sbridge.errors import (
    FileFormatError,
    InvalidInputError,
    SbridgeError,
    UnknownNameError,
    UnsupportedError,
    UnverifiedFileWarning,
)
from sbridge.storage import files
from sbridge.storage.registry import encode
from sbridge.training import Optimisation

GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.randn(200, 2, generator=GENERATOR)
X1 = torch.randn(200, 2, generator=GENERATOR) * 0.5 + 1.0
IMF = sb.IMF(
    coupling=sb.couplings.ReferenceCoupling(),
    pretraining=10,
    stages=2,
    updates=5,
    pairs=64,
    network=sb.networks.MLP(width=8, depth=1),
    optimisation=Optimisation(batch=32),
)
REFERENCES = {
    "Brownian": sb.BrownianMotion(sigma=0.7, horizon=2.0),
    "OU": sb.OrnsteinUhlenbeck(rate=[[0.5, 0.2], [-0.3, 0.4]], sigma=[0.7, 0.9], mean=[0.1, 0.0]),
    "VP": sb.VariancePreserving(),
    "VE": sb.VarianceExploding(0.1, 2.0),
}


def same(one: sb.Bridge, other: sb.Bridge) -> None:
    t = 0.4 * one.horizon
    assert torch.equal(one.transport(X0, seed=1), other.transport(X0, seed=1))
    assert torch.equal(one.reversed().transport(X1, seed=1), other.reversed().transport(X1, seed=1))
    assert torch.equal(one.interpolate(X0, t, seed=2), other.interpolate(X0, t, seed=2))
    assert torch.equal(one.current_velocity(t, X0), other.current_velocity(t, X0))
    assert torch.equal(one.forward.sample(9, seed=3).x, other.forward.sample(9, seed=3).x)
    assert torch.equal(one.backward.sample(9, seed=3).x, other.backward.sample(9, seed=3).x)


@pytest.mark.parametrize("solver", [sb.GaussianBridge(), sb.SinkhornBridge(), IMF], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_a_saved_bridge_comes_back_bit_for_bit(solver, reference, tmp_path):
    bridge = sb.fit(X0, X1, reference=reference, solver=solver)
    bridge.save(tmp_path / "deep" / "bridge")
    same(bridge, sb.load(tmp_path / "deep" / "bridge"))
    document = json.loads((tmp_path / "deep" / "bridge.json").read_text())
    assert document["contains_training_rows"] is True


def test_a_bridge_between_laws_holds_no_rows(tmp_path):
    ends = (sb.Gaussian(torch.zeros(2), torch.eye(2)), sb.Gaussian(torch.ones(2), 2 * torch.eye(2)))
    sb.fit(*ends, reference=REFERENCES["OU"]).save(tmp_path / "bridge")
    assert json.loads((tmp_path / "bridge.json").read_text())["contains_training_rows"] is False


def test_a_fresh_interpreter_loads_what_another_saved(tmp_path):
    bridge = sb.fit(X0, X1, reference=REFERENCES["Brownian"], solver=sb.SinkhornBridge())
    bridge.save(tmp_path / "bridge")
    code = f"import sbridge; print(sbridge.load({str(tmp_path / 'bridge')!r}).horizon)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"


def test_what_cannot_be_named_is_not_saved(tmp_path):
    wavy = sb.BrownianMotion(sigma=lambda t: 1.0 + 0.5 * torch.sin(t))
    bridge = sb.fit(X0, X1, reference=wavy, solver=sb.GaussianBridge())
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        bridge.save(tmp_path / "bridge")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 10**5, "a/" * 3000, "plain/x", "a\0b", "", ".", "folder.json"])
def test_paths_that_name_no_saved_bridge(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "plain").write_text("a file")
    for load in (sb.load, sb.Course.load):
        with pytest.raises(InvalidInputError) as raised:
            load(name)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", ["a\0b", "", ".", "/"])
def test_paths_to_which_nothing_is_saved(name):
    with pytest.raises(InvalidInputError, match="path"):
        sb.fit(X0, X1, solver=sb.GaussianBridge()).save(name)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "bridge"
    with pytest.raises(FileFormatError, match="does not exist"):
        sb.load(path)
    sb.fit(X0, X1, solver=sb.GaussianBridge()).save(path)
    text, numbers = (path.with_suffix(suffix) for suffix in (".json", ".safetensors"))
    whole_text, whole_numbers = text.read_text(), numbers.read_bytes()
    numbers.write_bytes(whole_numbers[:-40])
    with pytest.raises(FileFormatError, match="truncated"):
        sb.load(path)
    numbers.write_bytes(whole_numbers)
    for content, message in (
        (whole_text[:-30], "not readable JSON"),
        ('{"format": "other/1"}', "not a saved bridge"),
        ("[" * 100_000, "not readable JSON"),
        (whole_text.replace('"contains', '"c": NaN, "contains'), "NaN is not a JSON number"),
        (whole_text.replace('"checksum": "', '"checksum": "0'), "was changed after it was saved"),
        (whole_text.replace('"checksum"', '"check"'), "was changed after it was saved"),
    ):
        text.write_text(content)
        with pytest.raises(FileFormatError, match=message):
            sb.load(path)


def by_hand(path, old, new):
    """Changes the text of a saved bridge, and makes it a file of the format that had no checksums."""
    file = path.with_suffix(".json")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1).replace("sbridge.bridge/2", "sbridge.bridge/1"))


@pytest.mark.filterwarnings("ignore::sbridge.errors.UnverifiedFileWarning")
def test_a_class_that_is_spelled_wrong_is_named(tmp_path):
    sb.fit(X0, X1, solver=sb.GaussianBridge()).save(tmp_path / "bridge")
    by_hand(tmp_path / "bridge", '"GaussianControl"', '"GaussianControll"')
    with pytest.raises(UnknownNameError, match="Did you mean 'GaussianControl'"):
        sb.load(tmp_path / "bridge")


SAVED = Path(__file__).parent / "saved"


@pytest.mark.parametrize("name", ["gaussian", "matched", "mixture", "sinkhorn"])
def test_a_bridge_of_version_0_1_0_loads_and_draws_as_it_did(name):
    """Its file names modules of that version, and carries no checksum: both are read, the second with a warning."""
    with pytest.warns(UnverifiedFileWarning, match="no checksums"):
        bridge = sb.load(SAVED / name)
    expected = files.read_tensors(SAVED / "expected.safetensors")
    rows, tolerance = expected[f"{name}.rows"], 1e-5 if name == "matched" else 1e-10
    found = {
        "forward": bridge.transport(rows, seed=1),
        "backward": bridge.reversed().transport(rows, seed=2),
        "mid": bridge.interpolate(rows, 0.5, seed=3),
        "control": bridge.forward.control(0.25, rows),
    }
    for what, values in found.items():
        torch.testing.assert_close(values, expected[f"{name}.{what}"], rtol=tolerance, atol=tolerance)


def test_halves_of_two_saves_are_refused(tmp_path):
    for name, shift in (("one", 0.0), ("other", 50.0)):
        sb.fit(X0 + shift, X1, solver=sb.GaussianBridge()).save(tmp_path / name)
    (tmp_path / "other.safetensors").replace(tmp_path / "one.safetensors")
    with pytest.raises(FileFormatError, match="of another save"):
        sb.load(tmp_path / "one")


def test_a_flipped_bit_is_seen_or_changes_nothing(tmp_path):
    path, generator = tmp_path / "bridge", torch.Generator().manual_seed(0)
    sb.fit(X0[:9], X1[:9], solver=sb.SinkhornBridge()).save(path)
    whole = encode(sb.load(path))
    for ending in (".json", ".safetensors"):
        file = path.with_suffix(ending)
        content = file.read_bytes()
        for bit in torch.randint(8 * len(content), (100,), generator=generator).tolist():
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            try:
                tree, tensors = encode(sb.load(path))
            except FileFormatError:
                continue
            assert tree == whole[0]
            assert all(torch.equal(tensors[key], value) for key, value in whole[1].items())
        file.write_bytes(content)


@pytest.mark.filterwarnings("ignore::sbridge.errors.UnverifiedFileWarning")
@pytest.mark.parametrize("solver", [sb.GaussianBridge(), sb.SinkhornBridge(), IMF], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.slow)])
def test_files_made_by_hand_are_refused_or_right(solver, every, tmp_path):
    """Values of the document in turn become ones of another kind, tensors ones of another shape.

    Every one of them: ``pytest -m slow tests/test_solutions.py``.
    """
    path = tmp_path / "bridge"
    sb.fit(X0, X1, reference=REFERENCES["OU"], solver=solver).save(path)
    document = json.loads(path.with_suffix(".json").read_text()) | {"format": "sbridge.bridge/1"}
    tensors = files.read_tensors(path.with_suffix(".safetensors"))
    values = (None, "text", -1, 10**9, 10**400, [], {}, {"class": "Point", "fields": {}})
    tried = list(product(places(document["bridge"]), values))[::every]
    refused = 0
    for place, value in tried:
        changed = json.loads(json.dumps(document))
        put(changed["bridge"], place, value)
        path.with_suffix(".json").write_text(json.dumps(changed))
        refused += is_refused(path)
    path.with_suffix(".json").write_text(json.dumps(document))
    damages = (lambda x: x[:-1] if x.ndim else x.new_zeros(2), lambda x: x[None], lambda x: x.to(torch.int16))
    for name, damage in list(product(tensors, damages))[:: min(every, 4)]:  # all three kinds, as 4 and 3 are coprime
        files.write_tensors(path.with_suffix(".safetensors"), tensors | {name: damage(tensors[name])})
        refused += is_refused(path)
    assert refused > 0.5 * len(tried)


def is_refused(path):
    """When it is loaded, or, where a number of the right kind leads to NaN, when it is used."""
    try:
        bridge = sb.load(path)
    except (FileFormatError, UnknownNameError):
        return True
    try:
        assert bridge.transport(torch.zeros(3, 2), seed=0).shape == (3, 2)
    except SbridgeError:
        return True
    return False


def places(tree, at=()):
    """Keys that lead to every value of a JSON tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*at, key)
            yield from places(value, (*at, key))


def put(tree, place, value):
    *path, last = place
    for key in path:
        tree = tree[key]
    tree[last] = value


def test_the_ending_may_be_given_and_the_run_folder(tmp_path):
    bridge = sb.fit(X0, X1, solver=sb.GaussianBridge())
    bridge.save(tmp_path / "bridge.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bridge.json", "bridge.safetensors"]
    for path in ("bridge", "bridge.json", "bridge.safetensors", ""):
        same(bridge, sb.load(str(tmp_path / path)))
    bridge.save(tmp_path / "bridge-1")
    with pytest.raises(FileFormatError, match="holds a time course of 1 bridges"):
        sb.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match=r"without a bridge\.json"):
        sb.load(tmp_path / "empty")


def test_the_flow_of_the_velocity_carries_the_marginals():
    # dx/dt = v(t, x) has the bridge's marginals: mean and covariance of a Gaussian bridge after Heun steps.
    a, b = (sb.Gaussian(m, c) for m, c in ((torch.zeros(2), torch.eye(2)), (torch.ones(2), 0.3 * torch.eye(2))))
    ends = [sb.Gaussian(law.mean.double(), law.covariance.double()) for law in (a, b)]
    bridge = sb.fit(*ends, reference=sb.OrnsteinUhlenbeck(rate=0.5, sigma=0.8))
    x = ends[0].sample(4000, torch.Generator().manual_seed(1))
    steps, (mean, covariance) = 100, (x.mean(0), x.mT.cov())
    for k in range(steps):
        t, h = k / steps, 1 / steps
        first = bridge.current_velocity(t, x)
        x = x + 0.5 * h * (first + bridge.current_velocity(t + h, x + h * first))
    # The flow is affine and commutes with these moments: N(0, I) ↦ N(1, 0.3 I), so x ↦ 1 + √0.3 x.
    torch.testing.assert_close(x.mean(0), 1 + 0.3**0.5 * mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(x.mT.cov(), 0.3 * covariance, rtol=1e-3, atol=1e-4)


def test_interpolation_ends_where_it_should():
    bridge = sb.fit(X0, X1, reference=REFERENCES["Brownian"], solver=sb.GaussianBridge())
    assert torch.equal(bridge.interpolate(X0, 0.0, seed=0), X0)
    end = bridge.interpolate(X0.repeat(20, 1), 2.0, seed=0)
    error = end.std(0) / len(end) ** 0.5
    exact = bridge.conditional_mean(X0, seed=0).mean(0)
    assert bool(((end.mean(0) - exact).abs() < 4 * error).all())


def test_rows_of_another_dimension_or_kind_are_refused():
    bridge = sb.fit(X0, X1, solver=sb.GaussianBridge())
    with pytest.raises(InvalidInputError, match="x0 has 3 columns, but the bridge has dimension 2"):
        bridge.transport(torch.zeros(4, 3), seed=0)
    with pytest.raises(InvalidInputError, match="NaN"):
        bridge.transport(torch.full((4, 2), float("nan")), seed=0)
    for t in (-0.1, 1.1):
        with pytest.raises(InvalidInputError, match="time"):
            bridge.interpolate(X0, t, seed=0)
    assert bridge.transport(X0[:1], seed=0).shape == (1, 2)


REGISTERED = [name for name, one in LINEAR.items() if name != "third party" and not is_function_of_time(one)]


@pytest.mark.parametrize("name", REGISTERED)
def test_every_reference_comes_back(name, tmp_path):
    generator = torch.Generator().manual_seed(1)
    x0, x1 = torch.randn(30, 3, generator=generator), torch.randn(30, 3, generator=generator)
    bridge = sb.fit(x0, x1, reference=LINEAR[name], solver=sb.GaussianBridge())
    bridge.save(tmp_path / "bridge")
    back, t = sb.load(tmp_path / "bridge"), 0.4 * bridge.horizon
    assert type(back.reference) is type(LINEAR[name])
    assert torch.equal(back.transport(x0, seed=1), bridge.transport(x0, seed=1))
    assert torch.equal(back.interpolate(x0, t, seed=2), bridge.interpolate(x0, t, seed=2))
    assert torch.equal(back.current_velocity(t, x0), bridge.current_velocity(t, x0))


def flag(bridge, path):
    bridge.save(path)
    return json.loads(path.with_suffix(".json").read_text())["contains_training_rows"]


def test_files_say_whether_rows_of_the_data_are_in_them(tmp_path):
    normal = sb.Gaussian(torch.zeros(2), torch.eye(2))
    mixture = sb.GaussianMixture(torch.ones(1), torch.ones(1, 2), torch.eye(2)[None])
    learned = sb.fit(normal, mixture, solver=IMF)
    assert flag(learned, tmp_path / "laws") is False
    assert flag(sb.fit(normal, sb.Samples(X1), solver=IMF), tmp_path / "one end") is True
    plugged = sb.fit(X0, X1, solver=sb.SinkhornBridge())
    assert flag(plugged, tmp_path / "plugged") is True
    # also where only the kernel and the control hold rows
    hidden = sb.Bridge(*(replace(m, start=normal) for m in (plugged.forward, plugged.backward)))
    assert flag(hidden, tmp_path / "hidden") is True
    bare = sb.Bridge(*(replace(m, start=normal) for m in (learned.forward, learned.backward)))
    assert flag(bare, tmp_path / "bare") is False


def test_a_reversed_bridge_is_saved_as_it_is(tmp_path):
    bridge = sb.fit(X0, X1, solver=sb.SinkhornBridge()).reversed()
    bridge.save(tmp_path / "bridge")
    same(bridge.reversed(), sb.load(tmp_path / "bridge").reversed())


def test_times_of_a_reversed_bridge_stay_bridge_times():
    """It starts at ``t = T``; the current velocity is that of bridge time whichever way one looks."""
    bridge = sb.fit(X0, X1, reference=REFERENCES["Brownian"], solver=sb.GaussianBridge())
    back = bridge.reversed()
    assert torch.equal(back.interpolate(X1, 2.0, seed=0), X1)
    assert torch.equal(back.interpolate(X1, 0.0, seed=0), back.transport(X1, seed=0))
    assert torch.equal(back.current_velocity(0.7, X0), bridge.current_velocity(0.7, X0))


def test_velocity_without_controls_is_the_drift():
    normal = sb.Gaussian(torch.zeros(2), torch.eye(2))
    process = REFERENCES["OU"]
    measures = (
        sb.PathMeasure(process, None, normal, direction)
        for direction in (sb.measures.Direction.FORWARD, sb.measures.Direction.BACKWARD)
    )
    torch.testing.assert_close(sb.Bridge(*measures).current_velocity(0.3, X0), process.drift(0.3, X0))


def test_loading_leaves_the_global_random_state(tmp_path):
    sb.fit(X0, X1, solver=IMF).save(tmp_path / "bridge")
    before = torch.get_rng_state()
    sb.load(tmp_path / "bridge")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore::sbridge.errors.UnverifiedFileWarning")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bridge": {', '"bridg": {', "not a saved bridge"),
        ('"fields": {', '"field": {', "has no fields"),
        ('"member": "FORWARD"', '"member": "SIDEWAYS"', "no member 'SIDEWAYS'"),
        ('"grid": {', '"mesh": {', "cannot be made from fields"),
    ],
    ids=["no bridge", "no fields", "no member", "foreign field"],
)
def test_files_that_were_changed_by_hand_are_refused(old, new, message, tmp_path):
    sb.fit(X0, X1, solver=sb.GaussianBridge()).save(tmp_path / "bridge")
    by_hand(tmp_path / "bridge", old, new)
    with pytest.raises(FileFormatError, match=message):
        sb.load(tmp_path / "bridge")


@pytest.mark.parametrize(
    "solver", [None, sb.SinkhornBridge(), sb.GaussianBridge(), sb.MatchedBridge(updates=1)], ids=str
)
def test_what_is_printed_is_short(solver):
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(200, 3, generator=generator), torch.randn(200, 3, generator=generator) + 1
    bridge = sb.fit(x0, x1, solver=solver, reference=sb.BrownianMotion(1.0))
    prepared = sb.fitting.prepare(x0, x1, solver=solver, reference=sb.BrownianMotion(1.0))
    for thing in (bridge, bridge.forward, bridge.forward.sample(5, seed=0), prepared, prepared.problem, sb.Samples(x0)):
        text = repr(thing)
        assert text.startswith(type(thing).__name__)
        assert len(text.splitlines()) <= 8
        assert len(text) < 1500
        assert "tensor(" not in text
    assert repr(sb.Samples(x0)) == "Samples(rows=float32 (200, 3), weights=None, mass=1.0)"
