"""``--device`` of every command, on a simulated device: the same files as on the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulated_device import simulated_device

from sbridge.cli.main import run

PROBLEM = """
import torch, sbridge as sb
problem = sb.ControlProblem(sb.BrownianMotion(1.0), sb.Point(torch.zeros(2)), None, lambda x: (x - 1.0).square().sum(1))
solver = sb.LogVariance(updates=2, grid=sb.TimeGrid.uniform(3), network=sb.networks.MLP(8, 1))
"""
THERE = ("--device", "simulated")
SINKHORN = ["--solver", "sinkhorn", "--sigma", "1", "--solver.grid", "uniform:3"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for shift, name in enumerate("abc"):
        np.save(f"{name}.npy", draw.standard_normal((80, 2)).astype(np.float32) + shift)
    Path("problem.py").write_text(PROBLEM, encoding="utf-8")
    with simulated_device():
        yield tmp_path


def twice(words: list[str], out: str | None = None) -> list[str]:
    """Runs a command on the CPU and on the device; ``out`` in its words is another file each time."""
    places = []
    for place, more in (("here", ()), ("there", THERE)):
        target = None if out is None else out.format(place)
        assert run([*(target if word == "OUT" else word.format(place) for word in words), *more]) == 0
        places.append(target)
    return places


def test_a_run_and_what_is_made_from_it():
    twice(["fit", "a.npy", "b.npy", "--out", "OUT", *SINKHORN, "--held-out", "0", "--no-figures"], "{}")
    assert [json.loads(Path(place, "config.json").read_text())["device"] for place in ("here", "there")] == [
        "cpu",
        "simulated",
    ]
    assert Path("here/bridge.safetensors").read_bytes() == Path("there/bridge.safetensors").read_bytes()
    for words in (["--input", "c.npy"], ["--n", "30"], ["--n", "30", "--direction", "backward"]):
        here, there = twice(["sample", "here", *words, "--out", "OUT"], "{}" + "".join(words[1:]) + ".npy")
        np.testing.assert_array_equal(np.load(here), np.load(there))


@pytest.mark.slow
def test_runs_are_scored_and_drawn():
    twice(["fit", "a.npy", "b.npy", "--out", "OUT", *SINKHORN, "--held-out", "0.4"], "{}")
    here, there = twice(["evaluate", "here", "a.npy", "c.npy", "--out", "OUT"], "{}.json")
    assert json.loads(Path(here).read_text()) == json.loads(Path(there).read_text())
    assert run(["plot", "here", "--rows", "20", "--out", "figures", *THERE]) == 0


def test_courses_and_controls(capsys):
    inputs = ["a.npy", "b.npy", "c.npy", "--times", "0", "1", "3"]
    twice(["fit", *inputs, "--out", "OUT", *SINKHORN, "--held-out", "0", "--no-figures"], "{}")
    here, there = twice(["sample", "here", "--input", "a.npy", "--time", "2", "--out", "OUT"], "{}.npy")
    np.testing.assert_array_equal(np.load(here), np.load(there))
    capsys.readouterr()
    twice(["cross-validate", *inputs, "--solvers", "sinkhorn", "--sigma", "1", "--seeds", "0", "--max-rows", "40"])
    half = capsys.readouterr().out.splitlines()
    assert half[: len(half) // 2] == half[len(half) // 2 :]
    twice(["control", "problem.py", "--paths", "64", "--out", "OUT"], "{}-control")
    here, there = (json.loads(Path(f"{place}-control/report.json").read_text()) for place in ("here", "there"))
    assert here["objective"]["value"] == pytest.approx(there["objective"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "run", "--n", "3", "--out", "x.npy"],
        ["evaluate", "run", "a.npy", "b.npy"],
        ["plot", "run"],
        ["cross-validate", "a.npy", "b.npy", "c.npy", "--times", "0", "1", "2"],
        ["control", "problem.py"],
        ["diffuse", "a.npy", "--out", "new"],
    ],
)
def test_an_absent_device_is_refused_at_once(words, capsys):
    Path("run").mkdir()
    for name in ("config.json", "bridge.json"):
        Path("run", name).write_text("{}")
    assert run([*words, "--device", "cuda:77"]) == 2
    assert "device 'cuda:77' is not available; use cpu" in capsys.readouterr().err
    assert not Path("x.npy").exists()
