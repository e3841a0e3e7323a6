"""``sbridge verify`` as its users meet it."""

import json

import numpy as np
import pytest
import torch

from sbridge.cli import run
from sbridge.controls import MLP
from sbridge.diffusion.reverse import end_distribution
from sbridge.diffusion.training import ScoreMatching
from sbridge.fitting import solve
from sbridge.identities import Kind, Outcome, base, identity
from sbridge.laws import Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import VariancePreserving
from sbridge.runs import RUN_FORMAT, RunFolder
from sbridge.solutions import save_bridge

FEW = ["--samples", "300", "--only", "score_form_is_mean_field_form", "two_times_of_the_ode"]


def rows(dim=2, count=60):
    return np.random.default_rng(dim).normal(size=(count, dim)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a file."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", rows())
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The run folder of a diffusion model that was hardly trained."""
    path = tmp_path_factory.mktemp("model") / "run"
    data, process = Samples(torch.from_numpy(rows())), VariancePreserving()
    solver = ScoreMatching(updates=2, network=MLP(8, 1))
    with RunFolder.claimed(path) as folder:
        folder.create({"format": RUN_FORMAT, "times": [0.0, 1.0]})
    folder.write_histories([[]])
    bridge = solve(BridgeProblem(data, end_distribution(process, data), process), solver, seed=0)
    save_bridge(bridge, folder.bridge(0, 1), folder.checksum())
    return path


def refused(capsys, arguments, *messages):
    assert run(["verify", *arguments]) == 2
    told = " ".join(capsys.readouterr().err.split())
    for message in messages:
        assert message in told
    assert "Traceback" not in told


def test_rows_are_told_and_written(here, capsys):
    assert run(["verify", "--data", "rows.npy", *FEW, "--json", "found.json"]) == 0
    out, err = capsys.readouterr()
    assert "7 checks of 2 identities in 1 setting(s): all hold" in out
    assert "rows.npy, variance-preserving" in out
    assert "trained here for a few seconds" in err
    document = json.loads((here / "found.json").read_text())
    assert document["holds"]
    assert document["samples"] == 300
    assert run(["verify", "--data", "rows.npy", *FEW, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "made": 0} == {**document, "made": 0}
    refused(capsys, ["--data", "rows.npy", *FEW, "--json", "found.json"], "exists. Choose another --json")


def test_a_model_brings_its_process_its_data_and_its_score(here, model, capsys):
    assert run(["verify", "--model", str(model), *FEW]) == 0
    out, err = capsys.readouterr()
    assert "VariancePreserving" in out
    assert "trained here" not in err
    np.save("wide.npy", rows(3))
    refused(capsys, ["--model", str(model), "--data", "wide.npy"], "3 columns", "dimension 2")
    refused(capsys, ["--model", str(model), "--process", "brownian"], "omit --process")


def test_a_bridge_is_no_diffusion_model(here, capsys):
    fit = ["fit", "rows.npy", "rows.npy", "--out", "bridge", "--solver", "sinkhorn", "--no-figures", "--held-out", "0"]
    assert run(fit) == 0
    capsys.readouterr()
    refused(capsys, ["--model", "bridge"], "not a reverse diffusion", "sbridge diffuse DATA --out RUN")
    refused(capsys, ["--model", "nothing"], "is not a run folder")


@pytest.mark.parametrize("process", ["brownian", "ornstein-uhlenbeck", "variance-exploding"])
def test_processes_are_fitted_to_the_data(here, process, capsys):
    assert run(["verify", "--data", "rows.npy", "--process", process, *FEW]) == 0
    assert process in capsys.readouterr().out


def test_a_failing_identity_gives_exit_code_one(here, monkeypatch, capsys):
    monkeypatch.setattr(base, "_IDENTITIES", dict(base._IDENTITIES))
    words = {"statement": "one is two", "equation": "none", "kind": Kind.EQUALITY, "left": "1", "right": "2"}

    @identity(group="action", **words)
    def one_is_two(setting):
        return Outcome(1.0, 2.0, 0.1)

    assert run(["verify", "--data", "rows.npy", "--samples", "300", "--only", "one_is_two"]) == 1
    out = capsys.readouterr().out
    assert "1 checks of 1 identities in 1 setting(s): 1 FAIL" in out
    assert "FAILS: one_is_two in rows.npy" in out


def test_the_list_needs_no_work(here, capsys):
    assert run(["verify", "--list"]) == 0
    out = capsys.readouterr().out
    assert "REVERSAL" in out
    assert "two_times_of_the_ode  [difference]" in out


def test_bad_input_is_told(here, capsys):
    (here / "empty.csv").touch()
    np.save("same.npy", np.ones((20, 2)))
    np.save("one.npy", rows(2, 1))
    bad = rows()
    bad[3, 1] = np.nan
    np.save("nan.npy", bad)
    refused(capsys, ["--only", "reversl"], "Did you mean 'reversal'?")
    refused(capsys, ["--only", "two_times_of_ode"], "Did you mean 'two_times_of_the_ode'?")
    refused(capsys, ["--data", "empty.csv"], "is empty")
    refused(capsys, ["--data", "nan.npy"], "row 3, column 1", "is nan")
    refused(capsys, ["--data", "one.npy"], "has 1 row", "at least 2")
    refused(capsys, ["--data", "same.npy"], "all rows of same.npy are equal")
    refused(capsys, ["--data", "nowhere.npy"], "does not exist")
    refused(capsys, ["--samples", "-5"], "--samples must be at least 100, got -5")
    refused(capsys, ["--max-rows", "1"], "--max-rows must be at least 2")
    refused(capsys, ["--seed", "-1"], "--seed must be")
    refused(capsys, ["--process", "variance-presrving"], "Did you mean 'variance-preserving'?")
    refused(capsys, ["--process", "brownian"], "give --data")
    refused(capsys, ["--json", "nowhere/x.json"], "does not exist. Create it first")


def test_all_equations_hold_on_data_whose_means_differ_by_column(capsys):
    """The noising process that is chosen for data reverts to their means."""
    assert run(["verify", "--data", "two_moons", "--only", "equations"]) == 0
    assert "chapman_kolmogorov" in capsys.readouterr().out
