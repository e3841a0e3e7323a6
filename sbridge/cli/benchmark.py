"""``sbridge benchmark``: tables of solvers against exact answers."""

from __future__ import annotations

import json
from pathlib import Path

from sbridge import files
from sbridge.benchmarks.control import Settings, plan, rows
from sbridge.cli.commands import Benchmark
from sbridge.cli.console import Console
from sbridge.errors import InvalidInputError


def run_benchmark(command: Benchmark, console: Console) -> int:
    """The whole command: rows as they come, then the file."""
    target = None if command.json in (None, "-") else Path(command.json)
    if target is not None and (target.exists() or not target.parent.is_dir()):
        raise InvalidInputError(f"{target} exists, or its folder does not; choose another --json.")
    settings = Settings(command.only, command.quick, command.seed)
    console.remark(f"{len(plan(settings))} rows; [brackets]: exact")
    found = []
    for row in rows(settings):
        found.append(row.to_json())
        if command.json == "-":
            console.remark(str(row))
        else:
            console.say(str(row))
    text = json.dumps({"quick": command.quick, "seed": command.seed, "rows": found}, indent=1, ensure_ascii=False)
    if target is not None:
        files.write_text(target, text + "\n")
    elif command.json == "-":
        console.say(text)
    return 0
