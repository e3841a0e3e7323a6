"""Identities on data and networks of the user, from Python and from files."""

import dataclasses

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.cli import run
from sbridge.errors import InvalidInputError, UnknownNameError
from sbridge.identities import PlainScore, Predicts, identities, own_setting, standard_settings, verify
from sbridge.identities.base import chosen

ROWS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
FILE = """
import torch
import sbridge as sb

with open("runs.txt", "a") as file:
    file.write("x")

process = sb.VariancePreserving()


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))

    def forward(self, t, x):
        assert t.shape == x.shape[:1] and t.dtype == x.dtype == torch.float32
        return self.layers(torch.cat([t[:, None], x], 1)) - x


net = Network()
"""


def test_a_plain_function_is_judged_by_its_error():
    def network(t, x):
        return -0.7 * x

    found = sb.verify(data=ROWS, score=network, only=["losses_agree_on_the_same_paths"])
    assert not found.failed
    trained = [check for check in found.checks if "trained network" in check.outcome.note]
    assert len(trained) == 3
    assert all(abs(check.outcome.right - trained[0].outcome.right) < 1e-9 for check in trained)


def test_predicted_noise_is_converted_to_a_score():
    process = sb.VariancePreserving()
    exact = own_setting(ROWS, process=process).exact

    def noise(t, x):
        return -process.transition(0.0, t).root.T.to(x)(exact(t, x))

    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = PlainScore(noise, process, Predicts.NOISE)(0.3, x)
    torch.testing.assert_close(found, exact(0.3, x))


def test_all_rows_of_a_run_are_the_same_points():
    setting = own_setting(torch.randn(900, 1, generator=torch.Generator().manual_seed(2)), max_rows=64)
    assert len(setting.data.rows) == 64
    assert setting.data.rows.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": lambda t, x: -x}, "need the data"),
        ({"data": ROWS, "settings": []}, "not both"),
        ({"data": ROWS, "score": lambda t, x: x[:, :1]}, "must return finite numbers of shape"),
        ({"data": ROWS, "score": lambda t, x: x / 0.0}, "some not finite"),
        ({"data": ROWS[:1]}, "at least 2"),
        ({"data": torch.ones(9, 2)}, "all rows of the data are equal"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(options, message):
    with pytest.raises(InvalidInputError, match=message):
        sb.verify(**options)


@pytest.mark.parametrize("name", ["Schrödinger", "schrodinger", "Schroedinger", "REVERSAL"])
def test_groups_have_plain_names(name):
    assert {one.group for one in chosen([name])} <= {"Schrödinger", "reversal"}


def test_an_unknown_group_is_still_unknown():
    with pytest.raises(UnknownNameError):
        chosen(["schroder"])


def test_a_network_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS.numpy())
    (tmp_path / "net.py").write_text(FILE)
    few = ["--samples", "300", "--only", "losses_agree_on_the_same_paths"]
    assert run(["verify", "--data", "rows.npy", "--network", "net.py:net", *few]) == 0
    out, err = capsys.readouterr()
    assert "trained network" in out
    assert "rows.npy, VariancePreserving" in out
    assert "trained here" not in err
    assert (tmp_path / "runs.txt").read_text() == "x"  # a file that trains trains once
    for arguments, message in (
        (["--network", "net.py:net"], "--network needs --data"),
        (["--data", "rows.npy", "--network", "net.py:Network"], "is a class"),
        (["--data", "rows.npy", "--network", "net.py:nets"], "does not define nets"),
        (["--data", "rows.npy", "--network", "other.py:net"], "is not the path of a file"),
    ):
        assert run(["verify", *arguments, *few]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert message in told
        assert "Traceback" not in told


def test_processes_share_the_identities_without_changing_them():
    settings = [dataclasses.replace(one, samples=50, steps=10) for one in standard_settings(seed=0)[:2]]
    only, seen = [one.name for one in identities() if one.applies(settings[0])][:2], []
    shared = verify(settings, only, lambda *told: seen.append(told[:2]), workers=2)
    alone = verify(settings, only)
    assert [check.to_json() for check in shared.checks] == [check.to_json() for check in alone.checks]
    assert seen == [(done + 1, 4) for done in range(4)]
    with pytest.raises(InvalidInputError, match="workers must be an integer"):
        verify(settings, only, workers=0)
    with pytest.raises(InvalidInputError, match="only is a list of names"):
        verify(settings, "action")
