"""``sbridge verify``: checks the identities of the theory on built-in problems or on user data."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sbridge.cli.commands import Verify
from sbridge.cli.console import Console
from sbridge.cli.options import Automatic, Noise, Preserving, Reverting
from sbridge.cli.plan import read_options
from sbridge.cli.python_files import named_in
from sbridge.data.tables import read_table
from sbridge.diffusion.accessors import is_reverse_diffusion, score_of
from sbridge.diffusion.reverse import moments
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.identities import Setting, listing, standard_settings, verify
from sbridge.identities.base import chosen
from sbridge.identities.own import Network, PlainScore, Predicts, thinned
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples
from sbridge.laws.scaling import AffineScaling
from sbridge.laws.stored import in_memory
from sbridge.processes import LinearProcess, Process
from sbridge.random import derive, generator
from sbridge.runs.folder import RunFolder
from sbridge.solutions import Bridge
from sbridge.storage import documents

FAILED = 1
_MOST_WORKERS = 8  # each has its own copy of torch
_STANDARD = {"ornstein-uhlenbeck": "OU", "variance-preserving": "VP", "variance-exploding": "VE"}


def run_verify(command: Verify[Any], console: Console) -> int:
    """Runs the command; returns exit code 1 if an identity does not hold."""
    if command.list:
        console.say(listing())
        return 0
    asked = chosen(command.only)
    settings = make_settings(command, console)
    if command.model is None and command.network is None:
        console.remark(
            "no --model and no --network: checks of a trained network use a small one, trained here for a few seconds"
        )
        settings = [setting.trained() for setting in settings]
    workers = _workers(len(asked) * len(settings), command) if command.workers is None else command.workers
    result = verify(settings, command.only, partial(_progress, console), workers=workers)
    if console.interactive:
        console.renew("")
    document = {"seed": command.seed, "samples": command.samples, "settings": [s.name for s in settings]}
    text = json.dumps(document | result.to_json(), indent=1, ensure_ascii=False)
    if command.json == "-":
        console.say(text)
    else:
        console.say(result.text())
        if command.json is not None:
            documents.write_text(Path(command.json), text + "\n")
    return FAILED if result.failed else 0


def _workers(checks: int, command: Verify[Any]) -> int:
    """One process for each thread of torch, unless there is too little to do; a network of a file stays in this one."""
    return 1 if command.network is not None else max(1, min(torch.get_num_threads(), _MOST_WORKERS, checks // 50))


def make_settings(command: Verify[Any], console: Console) -> list[Setting]:
    """Returns the settings of the command, and prints the choices made for the user.

    Raises:
        InvalidInputError, UnsupportedError: for data, a model or a process that do not fit together.
    """
    if command.data is None and command.model is None:
        return _standard(command)
    bridge = None if command.model is None else _diffusion(command.model)
    if command.data is not None:
        rows = read_table(command.data, read_options(command.reading, command.seed)).rows
        rows = in_memory(rows, command.max_rows, command.seed)
        law, name = _at_most(Samples(rows.double()), command, console), command.data
    else:
        law, name = _at_most(_law_of(bridge), command, console), f"data of {command.model}"  # type: ignore[arg-type]
    if bridge is None:
        network, process = _network(command)
        process, about = process or _noising(command, law)
        setting = Setting(f"{name}, {about}", process, law, command.seed, command.samples)
        return [setting if network is None else replace(setting, network=_plain(command, network, setting))]
    if bridge.dim != law.dim:
        raise InvalidInputError(
            f"{command.data} has {law.dim} columns, but the model {command.model} has dimension {bridge.dim}. Give its "
            "training data, or other data in the same coordinates."
        )
    process = _linear(bridge.reference, str(command.model))
    setting = Setting(f"{name}, {type(process).__name__}", process, law, command.seed, command.samples)
    return [replace(setting, network=score_of(bridge))]


def _network(command: Verify[Any]) -> tuple[Network | None, tuple[LinearProcess, str] | None]:
    """Loads the network of --network, and the ``process`` of its file unless --process names another."""
    if command.network is None:
        return None, None
    network, names = named_in(command.network, "--network")
    if isinstance(network, type):
        raise InvalidInputError(
            f"{command.network} is a class. Name a trained network, such as net = {network.__name__}()."
        )
    process = names.get("process") if command.process == "auto" else None
    return network, None if process is None else (_linear(process, command.network), type(process).__name__)


def _plain(command: Verify[Any], network: Network, setting: Setting) -> PlainScore:
    """Makes the score of a network, and calls it once."""
    score = PlainScore(network, setting.process, Predicts(command.predicts))
    with torch.no_grad():
        score(0.5 * setting.horizon, setting.data.sample(2, generator(command.seed)).double())
    return score


def _standard(command: Verify[Any]) -> list[Setting]:
    """Returns the built-in problems, under one process if the user names it."""
    settings = standard_settings(seed=command.seed, samples=command.samples)
    if command.process == "auto":
        return settings
    if command.process not in _STANDARD or command.process_options != type(command.process_options)():
        raise InvalidInputError(
            f"the built-in problems use the processes {', '.join(_STANDARD)} with fixed options; for others, give "
            "--data."
        )
    return [setting for setting in settings if setting.name.endswith(_STANDARD[command.process])]


def _noising(command: Verify[Any], law: Law) -> tuple[LinearProcess, str]:
    """Returns the process about the data, and its name."""
    options = Preserving() if isinstance(command.process_options, Automatic) else command.process_options
    name = "variance-preserving" if command.process == "auto" else command.process
    mean, covariance = moments(law)
    spread = covariance.diagonal().mean().sqrt().reshape(1)
    if not float(spread) > 1e-12 * float(mean.norm()):
        raise InvalidInputError(f"all rows of {command.data} are equal, so there is no score to check.")
    sigma = None
    if name == "brownian":
        sigma = float(spread)
    elif isinstance(options, Reverting):  # its stationary spread is then that of the data
        sigma = float(spread) * (2.0 * abs(options.rate) or 1.0) ** 0.5
    process, _ = options.build(Noise(sigma, 1.0, lambda: AffineScaling(mean, spread)))
    return _linear(process, f"--process {name}"), name


def _linear(process: Process, origin: str) -> LinearProcess:
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"the noising process of {origin} is a {type(process).__name__}, whose transitions have no closed form, so "
            "there is no exact score to compare with. Use a linear process."
        )
    return process


def _diffusion(path: Path) -> Bridge:
    """Loads a run that is a reverse diffusion: its forward control is zero, so the backward control is a score."""
    bridges = RunFolder(path).course().bridges
    if len(bridges) != 1:
        raise UnsupportedError(f"{path} is a chain of {len(bridges)} bridges; a diffusion model has only one.")
    if not is_reverse_diffusion(bridges[0]):
        raise UnsupportedError(
            f"{path} is a Schrödinger bridge with a control in both directions, not a reverse diffusion: its backward "
            "control is not a score. Train a diffusion model: sbridge diffuse DATA --out RUN."
        )
    return bridges[0]


def _law_of(bridge: Bridge) -> Law:
    """Returns the data stored in the model, in float64."""
    law = bridge.forward.start
    if isinstance(law, Samples):
        return Samples(law.rows.double(), None if law.weights is None else law.weights.double())
    if isinstance(law, Gaussian):
        return Gaussian(law.mean.double(), law.covariance.double())
    if isinstance(law, GaussianMixture):
        return GaussianMixture(law.weights.double(), law.means.double(), law.covariances.double())
    raise UnsupportedError(f"the model stores a {type(law).__name__} instead of data; give --data.")


def _at_most(law: Law, command: Verify[Any], console: Console) -> Law:
    """Subsamples a set of points to ``--max-rows``."""
    if not isinstance(law, Samples) or len(law.rows) <= command.max_rows:
        return law
    console.remark(
        f"the empirical distribution uses {command.max_rows} of {len(law.rows)} rows, drawn at random (--max-rows)."
    )
    if law.weights is not None:
        return Samples(law.sample(command.max_rows, generator(derive(command.seed, "thinning"))))
    return Samples(thinned(law.rows, command.max_rows, command.seed))


def _progress(console: Console, done: int, total: int, what: str) -> None:
    """Updates a progress line on a terminal; elsewhere prints a line at every tenth."""
    if console.interactive:
        console.renew(f"{done} of {total}  {what}")
    elif done * 10 // total != (done - 1) * 10 // total:
        console.remark(f"{done} of {total} done; last {what}")
