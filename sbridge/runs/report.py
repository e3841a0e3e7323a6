"""The report of a run as text and JSON: what was fitted, how it scored on held-out samples, how long it took.

The JSON follows :data:`SCHEMA`. Times, memory and versions are under ``made``; everything else depends only on the
inputs, the settings and the seed.
"""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbridge.display import time_text
from sbridge.evaluation.certificate import Certificate, certificate_json, certificate_text
from sbridge.evaluation.report import Report, legend, tables
from sbridge.runs.summary import FORMAT, opening
from sbridge.storage.documents import Json
from sbridge.time import TimeGrid

_WIDTH = 100

_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}
SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of an sbridge run",
    "type": "object",
    "required": ["format", "inputs", "times", "seed", "choices", "legs", "made"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": FORMAT},
        "inputs": {
            "description": "the snapshots, in the order of times",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "sha256", "columns", "rows_fitted", "rows_held_out"],
                "properties": {
                    "name": {**_TEXT, "description": "file, or name of a built-in data set"},
                    "sha256": {**_TEXT, "description": "of the file, or of the numbers of a built-in set"},
                    "columns": {"description": "names, or their number if they have none"},
                    "rows_fitted": {"type": "integer"},
                    "rows_held_out": {"type": "integer"},
                },
            },
        },
        "times": {"description": "of the snapshots, in the user's unit", "type": "array", "items": _NUMBER},
        "seed": {"type": "integer"},
        "choices": {"description": "chosen from the data, one sentence each", "type": "array", "items": _TEXT},
        "legs": {
            "description": "one bridge for each pair of consecutive times",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["start", "stop", "reference", "solver", "steps", "last_step", "evaluation", "certificate"],
                "properties": {
                    "start": _NUMBER,
                    "stop": _NUMBER,
                    "reference": _TEXT,
                    "solver": _TEXT,
                    "steps": {"type": "integer", "description": "training steps done"},
                    "last_step": {"type": "object", "description": "numbers that the last step reported"},
                    "evaluation": {"description": "scores on held-out rows; null if none were held out"},
                    "certificate": {
                        "description": "bounds on the distance to the best bridge, or the reason why there are none; "
                        "null if no rows were held out"
                    },
                },
            },
        },
        "made": {
            "description": "circumstances, which differ from run to run",
            "type": "object",
            "required": ["seconds", "peak_memory_bytes", "threads", "versions"],
            "properties": {
                "seconds": {"type": "object", "description": "of reading, fitting, scoring, drawing, in this process"},
                "peak_memory_bytes": {"type": ["integer", "null"]},
                "threads": {"type": "integer"},
                "versions": {"type": "object"},
            },
        },
    },
}
"""JSON Schema of ``report.json``."""


@dataclass(frozen=True)
class LegReport:
    """Report of one bridge.

    Args:
        start, stop: times on the axis of the user.
        reference, solver: described by :func:`describe`.
        last_step: the report of the last training step, with its number under ``step``; empty if there was none.
        evaluation: scores on held-out samples.
        certificate: bounds from the same samples, or the reason why there are none.
    """

    start: float
    stop: float
    reference: str
    solver: str
    last_step: Mapping[str, float]
    evaluation: Report | None
    certificate: Certificate | str | None = None

    def to_json(self) -> Json:
        """Returns the leg as :data:`SCHEMA` describes it."""
        last = dict(self.last_step)
        return {
            "start": self.start,
            "stop": self.stop,
            "reference": self.reference,
            "solver": self.solver,
            "steps": int(last.pop("step", 0)),
            "last_step": last,
            "evaluation": None if self.evaluation is None else self.evaluation.to_json(),
            "certificate": None if self.certificate is None else certificate_json(self.certificate),
        }


@dataclass(frozen=True)
class RunReport:
    """Report of a whole run.

    Args:
        config: the contents of ``config.json``.
        choices: choices made from the data, one sentence each.
        legs: one for each bridge.
        seconds: wall time of each part of the work.
        peak_memory: in bytes, if the system provides it.
    """

    config: Json
    choices: Sequence[str]
    legs: Sequence[LegReport]
    seconds: Mapping[str, float]
    peak_memory: int | None

    def to_json(self) -> Json:
        """Returns the run as :data:`SCHEMA` describes it."""
        return {
            "format": FORMAT,
            "inputs": self.config["inputs"],
            "times": self.config["times"],
            "seed": self.config["seed"],
            "choices": list(self.choices),
            "legs": [leg.to_json() for leg in self.legs],
            "made": {
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                "peak_memory_bytes": self.peak_memory,
                "threads": self.config["threads"],
                "versions": self.config["versions"],
            },
        }

    def text(self, *, choices: bool = True) -> str:
        """Formats the report as text: a summary paragraph, every bridge, then the meaning of the tables.

        Args:
            choices: whether to list what was chosen from the data.
        """
        lines = ["Schrödinger bridge: report of the run", "", *_wrapped([opening(self.to_json())], indent=""), ""]
        for time, item in zip(self.config["times"], self.config["inputs"], strict=False):  # a prior is no input
            columns = item["columns"] if isinstance(item["columns"], int) else len(item["columns"])
            told = f"{item['rows_fitted']} rows fitted, {item['rows_held_out']} held out, {columns} columns"
            lines.append(f"t = {time_text(time)}: {item['name']}: {told}")
        if choices:
            lines += _wrapped([f"chosen from the data: {choice}" for choice in self.choices])
        reasons: dict[str, int] = {}
        for leg in self.legs:
            lines += ["", f"t = {time_text(leg.start)} → {time_text(leg.stop)}"]
            lines += _wrapped([f"reference: {leg.reference}", f"solver: {leg.solver}", _ending(leg.last_step)])
            if leg.evaluation is not None:
                lines += tables(leg.evaluation, reasons)
            if leg.certificate is not None:
                lines += ["", certificate_text(leg.certificate).rstrip()]
        scored = [leg.evaluation for leg in self.legs if leg.evaluation is not None]
        if scored:
            lines += ["", *legend(scored, reasons)]
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        memory = "" if self.peak_memory is None else f"; peak memory {self.peak_memory / 2**30:.2f} GiB"
        lines += ["", f"Time: {seconds}{memory}; {self.config['threads']} thread(s)."]
        return "\n".join(line.rstrip() for line in lines) + "\n"


def describe(thing: object) -> str:
    """Describes a dataclass by the fields that differ from their defaults, and tensors by their shape."""
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return repr(thing)
    if isinstance(thing, TimeGrid):
        return f"{thing.steps} steps"
    told = [f for f in dataclasses.fields(thing) if f.repr and not _is_default(f, getattr(thing, f.name))]
    return f"{type(thing).__name__}({', '.join(f'{f.name}={_value(getattr(thing, f.name))}' for f in told)})"


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return not isinstance(value, Tensor) and not isinstance(default, Tensor) and value == default


def _value(value: Any) -> str:  # noqa: ANN401  (a field may be anything)
    if isinstance(value, Tensor):
        return f"<{' × '.join(str(n) for n in value.shape)} numbers>" if value.numel() > 1 else f"{float(value):.4g}"
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return f"({', '.join(_value(item) for item in value)})"
    return f"{value:.4g}" if isinstance(value, float) else describe(value)


def _ending(last: Mapping[str, float]) -> str:
    if not last:
        return "no training steps: the solution is in closed form"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name != "step")
    return f"{int(last['step'])} steps; last step: {numbers}"


def _wrapped(paragraphs: Sequence[str], indent: str = "  ") -> list[str]:
    return [line for text in paragraphs for line in textwrap.wrap(text, _WIDTH, subsequent_indent=indent)]
