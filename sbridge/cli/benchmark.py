"""``sbridge benchmark``: tables of solvers against exact answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from sbridge import files
from sbridge.benchmarks import bridge, control
from sbridge.cli.benchmark_commands import BridgeTable, ControlTable
from sbridge.cli.console import Console
from sbridge.errors import InvalidInputError
from sbridge.registry import Json

Line = tuple[str, Json | None]
"""Text for people, and what of it goes into the file."""


def run_benchmark(command: ControlTable | BridgeTable, console: Console) -> int:
    """The whole command: rows as they come, then the file."""
    target = None if command.json in (None, "-") else Path(command.json)
    if target is not None and (target.exists() or not target.parent.is_dir()):
        raise InvalidInputError(f"{target} exists, or its folder does not; choose another --json.")
    asked = {key: value for key, value in dataclasses.asdict(command).items() if key != "json"}
    lines = _control(command, console) if isinstance(command, ControlTable) else _bridge(command, console)
    found = []
    for text, document in lines:
        if document is not None:
            found.append(document)
        if command.json == "-":
            console.remark(text)
        else:
            console.say(text)
    text = json.dumps({**asked, "rows": found}, indent=1, ensure_ascii=False)
    if target is not None:
        files.write_text(target, text + "\n")
    elif command.json == "-":
        console.say(text)
    return 0


def _control(command: ControlTable, console: Console) -> Iterator[Line]:
    settings = control.Settings(command.only, command.quick, command.seed)
    console.remark(f"{len(control.plan(settings))} rows; [brackets]: exact")
    for row in control.rows(settings):
        yield str(row), row.to_json()


def _bridge(command: BridgeTable, console: Console) -> Iterator[Line]:
    chosen = bridge.Settings.hurried() if command.quick else bridge.Settings()
    settings = dataclasses.replace(
        chosen,
        pairs=command.pairs or chosen.pairs,
        solvers=command.solvers or chosen.solvers,
        **({} if command.quick else {name: getattr(command, name) for name in ("dims", "epsilons", "seeds")}),
    )
    console.remark(f"{len(bridge.cells(settings))} pairs; excess: over perfect draws, which are the floor")
    last = None
    for row in bridge.rows(settings):
        if row.cell != last:
            yield f"{row.cell}\n{bridge.HEADING}", None
        last = row.cell
        yield str(row), row.to_json()
