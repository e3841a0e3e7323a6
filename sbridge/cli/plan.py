"""Plans a fit: decides and checks everything before anything is written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from sbridge.cli.commands import Diffuse, Fit, Reading, Training
from sbridge.cli.options import Automatic, Noise
from sbridge.cli.python_files import named
from sbridge.data.sources import ReadOptions
from sbridge.data.tables import Inputs, TableRows, read_inputs, read_table, split
from sbridge.devices import as_device
from sbridge.diffusion import end_distribution
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError, listed, number, shown
from sbridge.exact.ends import describe
from sbridge.fitting import Course, Preparation, choose_sigma, prepare, prepare_course
from sbridge.laws import Density, as_law
from sbridge.laws.scaling import AffineScaling, CommonScale, NoScaling, PerCoordinate, ScalingRecipe
from sbridge.laws.stored import MOST_KNOWN, in_memory
from sbridge.problems import Quadratic, SoftEnds
from sbridge.processes import Process
from sbridge.random import derive, generator
from sbridge.runs.files import RUN_FORMAT
from sbridge.runs.folder import RunFolder
from sbridge.storage.documents import Json
from sbridge.storage.registry import encode
from sbridge.time import snapped

_SCALINGS: dict[str, ScalingRecipe | None] = {
    "auto": None,
    "common": CommonScale(),
    "per-coordinate": PerCoordinate(),
    "none": NoScaling(),
}


_PRIOR_ROWS = 2000


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked plan of a fit.

    Attributes:
        inputs: the snapshots as read.
        kept: for each time the samples to fit, on the device of the fit; draws if there are no data.
        held_out: for each time the held-out samples; empty if there are none.
        times: of the snapshots; ``(0, T)`` if the user gave none.
        legs: a prepared fit for each pair of neighbouring snapshots.
        notes: one sentence for each choice that the user did not make.
    """

    inputs: Inputs
    kept: tuple[TableRows, ...]
    held_out: tuple[TableRows, ...]
    times: tuple[float, ...]
    legs: tuple[Preparation, ...]
    notes: tuple[str, ...]

    def config(self, command: Training, line: str) -> Json:
        """Returns the contents of ``config.json``: all that determines the result, and the versions used."""
        tables = zip(self.inputs.tables, self.kept, self.held_out, strict=False)
        return {
            "format": RUN_FORMAT,
            "command": line,
            "inputs": [
                {
                    "name": table.name,
                    "sha256": table.sha256,
                    "columns": list(table.columns) or table.dim,
                    "rows_fitted": len(kept),
                    "rows_held_out": len(held),
                }
                for table, kept, held in tables
            ],
            "times": list(self.times),
            "legs": [
                {
                    "reference": _plain(leg.problem.reference),
                    "solver": _plain(leg.solver),
                    "scaling": _plain(leg.scaling),
                    **({} if leg.problem.state_cost is None else {"state_cost": _plain(leg.problem.state_cost)}),
                }
                for leg in self.legs
            ],
            **_annotated(command),
            **_soft_ends(command),
            "seed": command.seed,
            "held_out": command.held_out,
            "dtype": str(self.inputs.tables[0].dtype).removeprefix("torch."),
            "device": command.device,
            "threads": torch.get_num_threads(),
            "versions": {"sbridge": sys.modules["sbridge"].__version__, "torch": version("torch")},
        }


def make_plan(command: Fit[Any, Any]) -> Plan:
    """Reads and checks the input, and plans the fit.

    Raises:
        InvalidInputError, UnsupportedError: for whatever cannot work, before a file is written.
    """
    device = as_device(command.device)
    inputs = read_inputs(command.inputs, command.times, read_options(command.reading, command.seed))
    if inputs.times is not None and command.horizon is not None:
        raise InvalidInputError(
            "--horizon and times were both given; the times determine the duration of the bridges. Omit --horizon, or "
            "give --times 0 T."
        )
    parts = [
        split(table.rows, command.held_out, derive(command.seed, "snapshot", place), table.name)
        for place, table in enumerate(inputs.tables)
    ]
    kept, held_out = (tuple(side.to(device) for side in sides) for sides in zip(*parts, strict=True))
    times = inputs.times or (0.0, command.horizon or 1.0)
    told: list[str] = []

    def reference(x0: TableRows, x1: TableRows, horizon: float) -> Process:
        noise, chosen = _noise(command, x0, x1, horizon)
        process, about = command.reference_options.build(noise)
        told.append(f"reference: {command.reference}" + "".join(f", {text}" for text in (about, chosen) if text))
        return process

    solver = None if isinstance(command.solver_options, Automatic) else command.solver_options
    cost = None if command.state_cost is None else _quadratic(command.state_cost)
    balance = None if command.soft_ends is None else SoftEnds(*command.soft_ends)
    options = {"state_cost": cost, "balance": balance, "solver": solver}
    options |= {"scaling": _SCALINGS[command.scaling], "seed": command.seed}
    if inputs.times is None:
        legs = (prepare(*kept, reference=reference(kept[0], kept[1], times[1]), **options),)
    else:
        _, legs = prepare_course(kept, times, reference=reference, **options)
    notes = (
        ["numbers: float64; --dtype float32 is faster, with 7 digits"]
        if inputs.tables[0].dtype == torch.float64
        else []
    )
    for leg, (about, start, stop) in enumerate(zip(told, times, times[1:], strict=False)):
        label, choice = "" if len(legs) == 1 else f"{start:g} → {stop:g}: ", legs[leg].choice
        notes.append(label + about)
        if cost is not None:
            inside = legs[leg].problem.reference
            notes.append(f"{label}state cost: {command.state_cost}; with it the reference is {inside}")
        changed = describe(legs[leg].problem)
        if changed is not None:
            notes.append(label + changed)
        if choice is not None:
            notes.append(f"{label}solver: {choice}; config.json lists its options")
    return Plan(inputs, kept, held_out, times, legs, tuple(notes))


def make_diffusion_plan(command: Diffuse[Any, Any]) -> Plan:
    """Reads and checks the input; the target of the one leg is the end distribution of the noising process.

    Raises:
        InvalidInputError, UnsupportedError: for whatever cannot work, before a file is written.
    """
    device = as_device(command.device)
    table = read_table(command.input, read_options(command.reading, command.seed))
    kept, held = (side.to(device) for side in split(table.rows, command.held_out, command.seed, table.name))
    noise = Noise(None, command.horizon, lambda: _scale(kept, kept, command.seed))
    process, about = command.reference_options.build(noise)
    source = as_law(kept, "x0")
    prior = end_distribution(process, source)
    leg = prepare(source, prior, reference=process, solver=command.solver_options, seed=command.seed)
    draws = prior.sample(max(len(held), _PRIOR_ROWS), generator(derive(command.seed, "prior"), device))
    notes = (
        f"noising: {command.reference}, {about}",
        f"solver: {type(leg.solver).__name__}; config.json lists its options",
    )
    ends = (kept, draws[:_PRIOR_ROWS]), (held, draws[: len(held)])
    return Plan(Inputs((table,), None), *ends, (0.0, command.horizon), (leg,), notes)


def read_options(reading: Reading, seed: int, run: RunFolder | None = None) -> ReadOptions:
    """Converts options of the command line to :class:`ReadOptions`; omitted ones are as in the fit of ``run``."""
    known = {} if run is None else run.config().get("annotated", {})
    return ReadOptions(
        representation=reading.rep or known.get("representation", "X_pca"),
        time_key=reading.time_key or known.get("time_key"),
        columns=reading.columns,
        rows=reading.rows,
        seed=seed,
        dtype=reading.dtype,
        header=reading.header,
        on_disk=reading.on_disk,
    )


def check_columns(name: str, columns: Sequence[str], run: RunFolder) -> None:
    """Checks the column names of new samples against those of the fit, where both are known.

    Raises:
        InvalidInputError: if they differ, in their order too.
        FileFormatError: if ``config.json`` holds no inputs.
    """
    try:
        fitted = run.config()["inputs"][0]["columns"]
    except (KeyError, IndexError, TypeError) as error:
        raise FileFormatError(f"{run.config_file} names no inputs with their columns.") from error
    if not columns or not isinstance(fitted, list) or list(columns) == fitted:
        return
    remedy = "Rename the columns if they are the same quantities."
    if set(fitted) <= set(columns):
        wanted = listed(map(shlex.quote, fitted), between=" ")
        remedy = f"Choose them by name, in the order of the fit: --columns {wanted}."
    told = f"{name} has the columns {listed(columns)}, but the run was fitted on {listed(fitted)}."
    raise InvalidInputError(f"{told} {remedy}")


def _soft_ends(command: Training) -> dict[str, Json]:
    """Returns the option as words, since JSON has no infinity; nothing for hard ends."""
    given = command.soft_ends if isinstance(command, Fit) else None
    return {} if given is None else {"soft_ends": [f"{value:g}" for value in given]}


def _annotated(command: Training) -> Json:
    """Returns how annotated cells were read, for later commands on the run."""
    specs = command.inputs if isinstance(command, Fit) else (command.input,) if isinstance(command, Diffuse) else ()
    if not any(".h5ad" in spec.lower() for spec in specs):
        return {}
    reading = command.reading
    return {"annotated": {"representation": reading.rep or "X_pca", "time_key": reading.time_key}}


def time_given(option: str, given: float | None, said: float | None, times: Sequence[float]) -> float | None:
    """Returns the time of samples: that of the option, else that of the file; ``None`` if neither gives one.

    Raises:
        InvalidInputError: if they are two different snapshots of the run.
    """
    if given is None or said is None:
        return said if given is None else given
    if snapped(said, times) in times and snapped(given, times) != snapped(said, times):
        raise InvalidInputError(
            f"{option} is {number(given)}, but the file gives time {number(said)}. Omit {option}, or choose other "
            f"cells: FILE.h5ad:{number(given)}."
        )
    return given


def dtype_of(course: Course) -> str:
    """Returns the floating-point type of a run, for text and integer input."""
    bridge = course.bridges[0]
    end = bridge.backward.start if isinstance(bridge.forward.start, Density) else bridge.forward.start
    return str(end.sample(1, generator(0)).dtype).removeprefix("torch.")


def _noise(command: Fit[Any, Any], x0: TableRows, x1: TableRows, horizon: float) -> tuple[Noise, str]:
    """Returns the noise options of the reference, and the reason for σ if it was chosen here and is used."""
    sigma = command.sigma if command.epsilon is None else (command.epsilon / horizon) ** 0.5
    if sigma is not None or command.reference not in ("brownian", "ornstein-uhlenbeck"):
        return Noise(sigma, horizon, lambda: _scale(x0, x1, command.seed)), ""
    choice = choose_sigma(x0, x1, horizon=horizon, seed=command.seed)
    return Noise(choice.sigma, horizon, lambda: _scale(x0, x1, command.seed)), str(choice)


def _scale(x0: TableRows, x1: TableRows, seed: int) -> AffineScaling:
    """Returns the scaling by the pooled rows of both ends."""
    return CommonScale()(in_memory(x0, MOST_KNOWN, seed), in_memory(x1, MOST_KNOWN, seed))


def _quadratic(place: str) -> Quadratic:
    """Returns the cost of --state-cost.

    Raises:
        UnsupportedError: for a function, which a run could not store.
    """
    cost = named(place, "--state-cost")
    if not isinstance(cost, Quadratic):
        raise UnsupportedError(
            f"--state-cost takes a costs.Quadratic, and {place} is {shown(cost)}. The bridge of a function cannot be "
            "stored; in Python, sb.fit(x0, x1, state_cost=V) learns it."
        )
    return cost


def _plain(thing: object) -> Json:
    """Converts ``thing`` to JSON, with the numbers of tensors written out."""
    tree, tensors = encode(thing)
    return _written_out(tree, tensors)


def _written_out(tree: Json, tensors: dict[str, Tensor]) -> Json:
    if isinstance(tree, list):
        return [_written_out(item, tensors) for item in tree]
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]].tolist()
        return {key: _written_out(item, tensors) for key, item in tree.items()}
    return tree
