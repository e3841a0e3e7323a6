"""``sbridge benchmark``: tables of solvers against exact answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sbridge.benchmarks import bridge, control
from sbridge.cli.benchmark_commands import Benchmark, BridgeTable, ControlTable
from sbridge.cli.console import Console
from sbridge.errors import FileFormatError, InvalidInputError
from sbridge.storage import documents
from sbridge.storage.documents import Json

Line = tuple[str, Json | None]
"""A line of output, and its JSON row if it has one."""


def run_benchmark(command: Benchmark, console: Console) -> int:
    """Runs the benchmark; writes all finished rows to the file after each row."""
    table = command.table
    target = None if table.json in (None, "-") else Path(table.json)
    if target is not None and not table.resume and target.exists():
        raise InvalidInputError(f"{target} exists; choose another --json, or continue it with --resume.")
    if target is not None and not target.parent.is_dir():
        raise InvalidInputError(f"the folder of {target} does not exist; choose another --json.")
    kept = _earlier(target, table) if table.resume else []
    if isinstance(table, ControlTable):
        asked = {key: value for key, value in dataclasses.asdict(table).items() if key not in ("json", "resume")}
        lines = _control(table, console, kept)
    else:
        settings = _bridge_settings(table)
        asked, lines = dataclasses.asdict(settings), _bridge(settings, console, kept)
    found: list[Json] = []
    for text, document in lines:
        if document is not None:
            found.append(document)
            if target is not None:
                rest = [row for row in kept if row not in found]
                documents.write_text(target, _text(asked, [*found, *rest]) + "\n")
        if table.json == "-":
            console.remark(text)
        else:
            console.say(text)
    if table.json == "-":
        console.say(_text(asked, found))
    return 0


def _text(asked: dict[str, object], rows: list[Json]) -> str:
    return json.dumps({**asked, "rows": rows}, indent=1, ensure_ascii=False)


def _earlier(target: Path | None, command: ControlTable | BridgeTable) -> list[Json]:
    """Returns the rows of the file without failures; raises InvalidInputError if their settings differ."""
    name, own = ("control", "problem") if isinstance(command, ControlTable) else ("bridge", "cell")
    if target is None:
        raise InvalidInputError("--resume continues a file: name it with --json FILE.")
    if not target.exists():
        return []
    document = documents.read_json(target)
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or any(own not in row for row in rows):
        raise FileFormatError(f"{target} holds no rows of sbridge benchmark {name}.")
    if document.get("quick") != command.quick:
        how = "with" if document.get("quick") else "without"
        raise InvalidInputError(f"{target} was measured {how} --quick; continue it {how} --quick.")
    return [row for row in rows if row["failure"] is None]


def _control(command: ControlTable, console: Console, done: Sequence[Json]) -> Iterator[Line]:
    settings = control.Settings(command.only, command.quick, command.seeds, command.budget, command.nulls)
    console.remark(f"{len(control.plan(settings))} rows; values in [brackets] are exact")
    for row in control.rows(settings, [control.Row.from_json(row) for row in done]):
        yield str(row), row.to_json()


def _bridge_settings(command: BridgeTable) -> bridge.Settings:
    """Returns the given settings, completed by those of the full or the quick table."""
    given = {name: getattr(command, name) for name in ("pairs", "solvers", "dims", "epsilons", "seeds")}
    chosen = bridge.Settings.hurried() if command.quick else bridge.Settings()
    return dataclasses.replace(chosen, **{name: value for name, value in given.items() if value})


def _bridge(settings: bridge.Settings, console: Console, done: Sequence[Json]) -> Iterator[Line]:
    console.remark(f"{len(bridge.cells(settings))} pairs; excess: difference from perfect samples, which are the floor")
    last = None
    for row in bridge.rows(settings, [bridge.Row.from_json(row) for row in done]):
        if row.cell != last:
            yield f"{row.cell}\n{bridge.HEADING}", None
        last = row.cell
        yield str(row), row.to_json()
