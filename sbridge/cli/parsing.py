"""Parses the words of a command line into a command.

No large package is imported before a command runs, so that ``--help`` and errors in options are quick.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Union

import tyro

from sbridge.cli.benchmark_commands import Benchmark
from sbridge.cli.commands import (
    Command,
    Control,
    CrossValidate,
    Demo,
    Diffuse,
    Evaluate,
    Fit,
    Plot,
    Report,
    Sample,
    Verify,
)
from sbridge.cli.early import check_words
from sbridge.cli.names import NOISING, REFERENCES, SOLVERS
from sbridge.cli.options import SCORE_MATCHING, Automatic, constructors, load_class, reference_options, solver_class
from sbridge.errors import SbridgeError, check_known, unknown_name


def parse(arguments: list[str]) -> Command:
    """Parses ``arguments`` into a command.

    Raises:
        UnknownNameError: for an unknown subcommand, solver or reference, with the nearest known.
        SystemExit: from tyro, after ``--help`` or an option that it cannot parse.
    """
    kinds = {"demo": Demo, "fit": Fit, "diffuse": Diffuse, "sample": Sample, "evaluate": Evaluate, "plot": Plot}
    kinds |= {"cross-validate": CrossValidate, "report": Report, "verify": Verify, "control": Control}
    kinds |= {"benchmark": Benchmark}
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None:
        check_known("command", [first], kinds)
    unknown: list[SbridgeError] = []

    def chosen(command: str, option: str, default: str, known: Collection[str]) -> str:
        """Returns the value of ``option`` for the command being parsed; its default for the other commands."""
        name = _value(arguments, f"--{option}", default) if first == command else default
        if name in known:
            return name
        unknown.append(unknown_name(option, name, known))
        return default

    names = {
        "solver": chosen("fit", "solver", "auto", SOLVERS),
        "reference": chosen("fit", "reference", "brownian", REFERENCES),
        "noising": chosen("diffuse", "reference", "variance-preserving", NOISING),
        "process": chosen("verify", "process", "auto", ("auto", *REFERENCES)),
    }
    if first not in (None, "benchmark") and not {"-h", "--help"} & set(arguments):
        heavy = first == "diffuse" or names["solver"] != "auto"
        check_words(kinds[first], arguments[arguments.index(first) + 1 :], unknown, heavy=heavy)

    kinds["fit"] = Fit[solver_class(names["solver"]), reference_options(names["reference"])]  # type: ignore[misc]
    learner = load_class(SCORE_MATCHING) if first == "diffuse" else Automatic  # not loaded for the others' sake
    kinds["diffuse"] = Diffuse[learner, reference_options(names["noising"])]  # type: ignore[misc]
    kinds["verify"] = Verify[reference_options(names["process"])]  # type: ignore[misc]
    choices = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())
    with constructors():
        return tyro.cli(Union[choices], args=arguments, prog="sbridge")  # type: ignore[arg-type, return-value]  # noqa: UP007


def _value(arguments: list[str], option: str, default: str) -> str:
    """Returns the value of ``option`` among the arguments."""
    for index, word in enumerate(arguments):
        if word == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return default
