"""The page of a run: one file, everything escaped, every figure with words."""

import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sbridge import evaluate
from sbridge.data.datasets import make
from sbridge.display import value_and_error
from sbridge.errors import FileFormatError
from sbridge.evaluation import Certificate
from sbridge.fitting import fit
from sbridge.runs.page import report_page
from sbridge.runs.report import LegReport, RunReport
from sbridge.runs.summary import opening
from sbridge.solvers import GaussianBridge
from sbridge.storage import documents

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8ffff3f0300080002fe"
    "a7d605f00000000049454e44ae426082"
)


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.addresses, self.cells, self.words, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def document():
    x0, x1 = make("two_moons", 200, seed=0), make("eight_gaussians", 200, seed=1)
    bridge = fit(x0, x1, solver=GaussianBridge(), seed=0)
    legs = [LegReport(0.0, 1.0, "BrownianMotion(<b>)", "GaussianBridge()", {}, evaluate(bridge, x0, x1, seed=0))]
    named = [{"name": name, "sha256": "0", "columns": 2, "rows_fitted": 200, "rows_held_out": 0} for name in "a<b&"]
    config = {"inputs": named[:2], "times": [0.0, 1.0], "seed": 0, "threads": 1, "versions": {"sbridge": "0"}}
    return json.loads(json.dumps(RunReport(config, ["σ < 1 & so on"], legs, {"fitting": 1.0}, None).to_json()))


def test_a_page_stands_alone_and_says_everything(document, tmp_path):
    paths = [tmp_path / "figures" / "drift.png", tmp_path / "figures" / "0-1" / "mine.png"]
    for path in paths:
        documents.write_bytes(path, PIXEL)
    page = report_page(document, paths)
    seen = Seen(page)
    assert seen.open == []
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    assert len(seen.images) == 2
    assert all(image["alt"] for image in seen.images)
    text = "".join(seen.words)
    assert "BrownianMotion(<b>)" in text
    assert "σ < 1 & so on" in text
    assert "0-1" in text
    scores = document["legs"][0]["evaluation"]["tasks"][0]["scores"]
    for candidate in {score["candidate"] for score in scores}:
        assert candidate in text
    energy = document["legs"][0]["evaluation"]["path"][0]
    assert value_and_error(energy["value"], energy["standard_error"]) in text
    assert opening(document) in text
    for column in document["legs"][0]["evaluation"]["columns"]:
        assert column["meaning"] in text


def test_nothing_held_out_is_said(document):
    unscored = json.loads(json.dumps(document))
    unscored["legs"][0]["evaluation"] = None
    assert "Nothing was scored" in report_page(unscored, [])


def test_the_certificate_is_told_or_why_there_is_none(document):
    told = json.loads(json.dumps(document))
    bounds = {name: {"value": 1.25, "standard_error": 0.4, "samples": 9} for name in ("lower_bound", "energy", "gap")}
    evaluation = document["legs"][0]["evaluation"]
    columns = [column for column in evaluation["columns"] if column["name"] in ("energy distance", "cost")]
    told["legs"][0]["certificate"] = {
        **bounds,
        "schema": "sbridge.certificate/1",
        "report": evaluation | {"columns": columns},
    }
    with pytest.raises(FileFormatError, match="the certificate has no verdict"):
        report_page(told, [])
    verdict = Certificate.from_json(told["legs"][0]["certificate"]).verdict
    told["legs"][0]["certificate"]["verdict"] = {"word": verdict.word, "reason": verdict.reason}
    page = report_page(told, [])
    assert page.count("1.2 ± 0.4") + page.count("1.3 ± 0.4") >= 3
    assert escape(str(verdict)) in page
    told["legs"][0]["certificate"] = {"reason": "too < few"}
    assert "No certificate: too &lt; few" in report_page(told, [])
    assert document["legs"][0]["certificate"] is None
    assert "certificate" not in report_page(document, []).lower()


def test_of_many_bridges_what_tables_mean_is_told_once(document):
    course = json.loads(json.dumps(document))
    course["times"], course["legs"] = [0.0, 1.0, 1e9 + 0.5], course["legs"] * 2
    course["legs"][1] = {**course["legs"][0], "start": 1.0, "stop": 1e9 + 0.5}
    page = report_page(course, [])
    assert page.count("<details>") == 1
    for column in document["legs"][0]["evaluation"]["columns"]:
        assert page.count(escape(column["meaning"])) == 1
    assert "t = 1 → 1000000000.5" in page
    text = "".join(Seen(page).words)
    assert text.count("some scored samples were seen in the fit") == 1
    assert "On rows of the fit" in text
    assert "On held-out rows" not in text


@pytest.mark.parametrize("damage", [[], {}, {"format": "other"}])
def test_what_is_no_report_is_refused(damage):
    with pytest.raises(FileFormatError, match="not a report of a run"):
        report_page(damage, [])


def test_a_damaged_report_is_refused(document):
    for name in ("inputs", "legs", "made"):
        damaged = {key: value for key, value in document.items() if key != name}
        with pytest.raises(FileFormatError, match="damaged"):
            report_page(damaged, [])
    with pytest.raises(OSError, match="missing"):
        report_page(document, [Path("figures/missing.png")])
