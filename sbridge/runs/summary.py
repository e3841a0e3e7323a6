"""The paragraph that opens a report, from its JSON: what was fitted, how good it is, what limits the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sbridge.display import time_text
from sbridge.evaluation.report import Report
from sbridge.evaluation.verdict import Verdict
from sbridge.storage.documents import Json

FORMAT = "sbridge.run-report/1"
_MOST_NAMED = 4  # inputs in the paragraph that sums up
_WORDS = ((90.0, "good"), (50.0, "fair"), (-math.inf, "poor"))  # least share of the gap that is closed, in percent
_FEW_ROWS = 300


def opening(document: Json) -> str:
    """Summarises in one paragraph what was fitted, how good it is, and what limits the scores.

    Args:
        document: the contents of a run's ``report.json``.
    """
    scored = [
        (f"t = {time_text(leg['start'])} → {time_text(leg['stop'])}", Report.from_json(leg["evaluation"]))
        for leg in document["legs"]
        if leg["evaluation"] is not None
    ]
    certificates = [leg["certificate"] for leg in document["legs"] if leg.get("certificate") is not None]
    return " ".join([_fitted(document), *_quality(scored), *_certified(certificates), *_cautions(scored)])


def _fitted(document: Json) -> str:
    pairs = list(zip(document["times"], document["inputs"], strict=False))  # a prior is no input
    named = [f"{item['name']} (t = {time_text(t)}, {item['rows_fitted']} rows)" for t, item in pairs]
    if len(named) > _MOST_NAMED:
        named = [*named[: _MOST_NAMED - 1], f"{len(named) - _MOST_NAMED} more", named[-1]]
    legs = document["legs"]
    solvers = ", ".join(dict.fromkeys(leg["solver"].partition("(")[0] for leg in legs))
    references = ", ".join(dict.fromkeys(leg["reference"].partition("(")[0] for leg in legs))
    if len(pairs) < len(document["times"]):
        return f"Fitted: a reverse diffusion of {named[0]} by {solvers}; the noising process is {references}."
    kind = "a Schrödinger bridge" if len(legs) == 1 else f"{len(legs)} Schrödinger bridges, one after the other,"
    return f"Fitted: {kind} through {', '.join(named)} by {solvers}; the reference is {references}."


def _quality(scored: Sequence[tuple[str, Report]]) -> list[str]:
    if not scored:
        return [
            "Nothing was scored, because no rows were held out or --no-evaluation was given; the quality of the fit is "
            "unknown."
        ]
    shares = []
    for span, report in scored:
        names = [column.name for column in report.columns]
        column = "energy distance" if "energy distance" in names else names[0]
        shares += [(report.gap_closed(task.name, column), column, f"{task.name}, {span}") for task in report.tasks]
    known = [(share, column, where) for share, column, where in shares if share is not None]
    kind = scored[0][1].rows
    if not known:
        return [f"On {kind} the scores carry no information: samples left unmoved score as well as perfect samples."]
    share, column, where = min(known)
    word = next(word for least, word in _WORDS if share >= least)
    unknown = (
        f" (from {len(shares) - len(known)} of {len(shares)} scores nothing follows)"
        if len(known) < len(shares)
        else ""
    )
    return [
        f"The end distributions are {word}: on {kind} the {column} closes {share:.0f} % of the gap between unmoved "
        f"samples (0 %) and perfect samples (100 %) in the worst case ({where}){unknown}."
    ]


def _certified(found: Sequence[Json]) -> list[str]:
    """Returns the verdict and reason of a single certificate; of several, the count of each verdict."""
    verdicts = []
    for one in found:
        if "reason" in one:
            verdicts.append(("none", f"none: {one['reason']}"))
        else:
            verdict = Verdict.of_certificate(one)
            verdicts.append((verdict.word, str(verdict)))
    if len(verdicts) == 1:
        return [f"Certificate: {verdicts[0][1][0].lower()}{verdicts[0][1][1:]}"]
    words = [word for word, _ in verdicts]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return [f"Certificates: {counts}."] if counts else []


def _cautions(scored: Sequence[tuple[str, Report]]) -> list[str]:
    reports = [report for _, report in scored]
    beware = []
    if any(report.seen[0] for report in reports):
        beware.append("some scored samples were seen in the fit; their scores say little about new samples")
    rows = [min(score.rows) for report in reports for task in report.tasks for score in task.scores if score.rows]
    if rows and min(rows) < _FEW_ROWS:
        beware.append(f"only {min(rows)} samples of an end are scored, so check the standard errors")
    if reports:
        beware.append(
            "scores of the ends do not show whether the paths between them are right; a snapshot withheld from the fit "
            "does (sbridge evaluate --time)"
        )
    return [f"Caveats: {'; '.join(beware)}."] if beware else []


def leg_folder(leg: int) -> str:
    """Returns the folder name for the figures of leg ``leg`` (from 0) of a time course; model files count likewise."""
    return f"leg-{leg + 1}"
