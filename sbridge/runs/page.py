"""The report of a run as one self-contained HTML page: no network, no scripts, figures embedded."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sbridge.display import time_text, value_and_error
from sbridge.errors import FileFormatError, shown
from sbridge.evaluation.report import Report, cells, meanings, quantity_text
from sbridge.evaluation.verdict import Verdict
from sbridge.runs.summary import FORMAT, leg_folder, opening
from sbridge.storage.documents import Json

FIGURES = {
    "trajectories": ("Trajectories", "Simulated paths from source samples, coloured by time."),
    "reversal": ("With and without the score", "With the score, paths run back to the data; without it they do not."),
    "marginals": (
        "Distributions through time",
        "Samples of the state at several times, from the first end to the last.",
    ),
    "generation": ("Generation", "Samples of the state at several times of the reversal, from noise to data."),
    "drift": ("Drift", "The controlled drift at several times, drawn as arrows over the states at that time."),
    "score": ("Score", "The score at several noise levels, drawn as arrows over the noised data."),
    "coupling": ("Coupling", "Lines from source samples to their end points."),
    "certificate": (
        "Certificate",
        "Energy of the forward process next to the lower bound on the least energy of any bridge, in nats, with two "
        "standard errors either side.",
    ),
    "history": (
        "Training",
        "Quantities reported by the training steps. A new curve starts with each new stage of the fit: another number "
        "of components (comp.), noise level or half-step; values of different curves are not comparable.",
    ),
}
"""Title and caption of each figure file, in the order of the page."""
_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-top: 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.own td { font-weight: 600; }
code { font-size: .9em; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; background: white; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
"""


def report_page(document: Json, figures: Sequence[Path]) -> str:
    """Builds the HTML page.

    Args:
        document: the contents of a run's ``report.json``.
        figures: PNG files in the order of the page; a sub-folder holds the figures of the leg that it is named after.

    Raises:
        FileFormatError: if the document is not the report of a run.
        OSError: if a figure cannot be read.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FileFormatError(f"not a report of a run: a mapping with format {FORMAT!r} is needed.")
    try:
        reasons: dict[str, int] = {}
        body = [f"<p>{escape(opening(document))}</p>", *_inputs(document)]
        body += [line for leg in document["legs"] for line in _leg(leg, reasons)]
        body += [*_legend(document, reasons), *_figures(figures, document), *_made(document)]
        title = "Schrödinger bridge: " + " → ".join(escape(str(item["name"])) for item in document["inputs"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"the report is damaged: {shown(error)}.") from error
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}<style>{_STYLE}</style></head>', "<body>"]
    return "\n".join([*lines, f"<h1>{title}</h1>", *body, "</body></html>", ""])


def _inputs(document: Mapping[str, Json]) -> list[str]:
    rows = [
        [time_text(time), item["name"], item["rows_fitted"], item["rows_held_out"], _count(item["columns"])]
        for time, item in zip(document["times"], document["inputs"], strict=False)  # a prior is no input
    ]
    choices = [f"<li>{escape(choice)}</li>" for choice in document["choices"]]
    return [
        *_table(["time", "data", "rows fitted", "held out", "columns"], rows, "What was fitted"),
        *(["<p>Chosen from the data:</p><ul>", *choices, "</ul>"] if choices else []),
    ]


def _count(columns: Json) -> int:
    return columns if isinstance(columns, int) else len(columns)


def _span(leg: Mapping[str, Json]) -> str:
    return f"t = {time_text(leg['start'])} → {time_text(leg['stop'])}"


def _leg(leg: Mapping[str, Json], reasons: dict[str, int]) -> list[str]:
    lines = [f"<h2>{_span(leg)}</h2><dl>"]
    steps = f"{leg['steps']}" if leg["steps"] else "none: the solution is in closed form"
    for name, text in (("Reference", leg["reference"]), ("Solver", leg["solver"]), ("Training steps", steps)):
        lines.append(f"<dt>{name}</dt><dd><code>{escape(text)}</code></dd>")
    lines.append("</dl>")
    if leg["evaluation"] is None:
        return [*lines, "<p>Nothing was scored, because no rows were held out or --no-evaluation was given.</p>"]
    return lines + _evaluation(Report.from_json(leg["evaluation"]), reasons) + _certificate(leg.get("certificate"))


def _certificate(found: Mapping[str, Json] | None) -> list[str]:
    """Formats the verdict, and the bounds in nats."""
    if found is None:
        return []
    lines = ["<h3>How far from the best bridge</h3>"]
    if "reason" in found:
        return [*lines, f"<p>No certificate: {escape(found['reason'])}</p>"]
    rows = [
        [words, value_and_error(found[name]["value"], found[name]["standard_error"])]
        for words, name in (
            ("lower bound on the least energy of any bridge", "lower_bound"),
            ("energy of the forward process", "energy"),
            ("suboptimality gap for its own end distribution", "gap"),
        )
    ]
    verdict = f"<p>{escape(str(Verdict.of_certificate(found)))}</p>"
    return [*lines, verdict, *_table(["certificate", "nats"], rows, "")]


def _evaluation(report: Report, reasons: dict[str, int]) -> list[str]:
    lines, names = [f"<h3>On {escape(report.rows)}</h3>"], [column.name for column in report.columns]
    for task in report.tasks:
        heads, rows = cells(report, task, names, reasons)
        lines += _table(["", *heads], rows, f"{task.name}: {task.description}", own=1)
    if report.path:
        rows = [[quantity.name, quantity_text(quantity, reasons)] for quantity in report.path]
        lines += _table(["path measures", "nats"], rows, "")
    return lines


def _legend(document: Mapping[str, Json], reasons: Mapping[str, int]) -> list[str]:
    """Formats the meaning of the table columns and rows, once for all bridges."""
    scored = [Report.from_json(leg["evaluation"]) for leg in document["legs"] if leg["evaluation"] is not None]
    if not scored:
        return []
    lines = ["<details><summary>Meaning of the columns and rows</summary>"]
    lines.append("<p>Smaller is better, except for the gap closed; value ± standard error.</p><dl>")
    columns = dict.fromkeys(column for report in scored for column in report.columns)
    explained = [*((column.name, column.meaning) for column in columns), *meanings(scored).items()]
    lines += [f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in explained]
    notes = [*dict.fromkeys(note for report in scored for note in report.notes)]
    notes += [f"[{number}] {reason}" for reason, number in reasons.items()]
    return [*lines, "</dl><ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul></details>"]


def _figures(paths: Sequence[Path], document: Mapping[str, Json]) -> list[str]:
    """Embeds the figures: those in a folder ``leg-2`` belong to the second bridge, the others to the whole run."""
    spans = {leg_folder(place): _span(leg) for place, leg in enumerate(document["legs"])}
    lines = ["<h2>Figures</h2>"] if paths else []
    for path in paths:
        title, text = FIGURES.get(path.stem, (path.stem, f"Figure {path.stem}."))
        folder = path.parent.name
        leg = "" if folder == "figures" else f" ({escape(spans.get(folder, folder))})"
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        lines.append(
            f"<figure>{image}<figcaption><strong>{escape(title)}{leg}.</strong> {escape(text)}</figcaption></figure>"
        )
    return lines


def _made(document: Mapping[str, Json]) -> list[str]:
    made, seconds = document["made"], document["made"]["seconds"]
    memory = made["peak_memory_bytes"]
    facts = [("seed", document["seed"]), ("threads", made["threads"])]
    facts += [(f"{name}, seconds", f"{value:.1f}") for name, value in seconds.items()]
    facts += [] if memory is None else [("peak memory, GiB", f"{memory / 2**30:.2f}")]
    facts += list(made["versions"].items())
    return ["<h2>How it was made</h2>", *_table(["", ""], [list(fact) for fact in facts], "")]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], caption: str, own: int = 0) -> list[str]:
    """Formats a table; its first ``own`` rows are those of the run itself."""
    lines = ['<div class="wide"><table>']
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    if any(heads):
        lines.append("<tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr>")
    for place, row in enumerate(rows):
        mark = ' class="own"' if place < own else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>")
    return [*lines, "</table></div>"]
