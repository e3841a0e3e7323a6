"""``sbridge benchmark``: tables of solvers against exact answers."""

from __future__ import annotations

import json
from pathlib import Path

from sbridge import files
from sbridge.benchmarks.control import Settings, plan, rows
from sbridge.benchmarks.control_rows import Row
from sbridge.cli.commands import Benchmark
from sbridge.cli.console import Console
from sbridge.errors import FileFormatError, InvalidInputError


def run_benchmark(command: Benchmark, console: Console) -> int:
    """The whole command: rows as they come, and the file with all that there are so far."""
    settings = Settings(command.only, command.quick, command.seeds, command.budget)
    target = None if command.json in (None, "-") else Path(command.json)
    done = _earlier(target, settings) if command.resume else []
    if target is not None and not command.resume and target.exists():
        raise InvalidInputError(f"{target} exists; go on with it by --resume, or choose another --json.")
    if target is not None and not target.parent.is_dir():
        raise InvalidInputError(f"there is no folder {target.parent}; make it, or choose another --json.")
    console.remark(f"{len(plan(settings))} rows; [brackets]: exact")
    found: list[Row] = []
    for row in rows(settings, done):
        found.append(row)
        if target is not None:
            files.write_text(target, _text(settings, [*found, *(old for old in done if old not in found)]) + "\n")
        if command.json == "-":
            console.remark(str(row))
        else:
            console.say(str(row))
    if command.json == "-":
        console.say(_text(settings, found))
    return 0


def _text(settings: Settings, found: list[Row]) -> str:
    document = {"quick": settings.quick, "seeds": settings.seeds, "rows": [row.to_json() for row in found]}
    return json.dumps(document, indent=1, ensure_ascii=False)


def _earlier(target: Path | None, settings: Settings) -> list[Row]:
    """The rows of the file; InvalidInputError if they were measured otherwise."""
    if target is None:
        raise InvalidInputError("--resume goes on with a file: name it by --json FILE.")
    if not target.exists():
        return []
    document = files.read_json(target)
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise FileFormatError(f"{target} holds no rows of sbridge benchmark control.")
    if document.get("quick") != settings.quick:
        raise InvalidInputError(
            f"{target} was measured with{'' if document.get('quick') else 'out'} --quick; do the same."
        )
    return [Row.from_json(row) for row in document["rows"]]
