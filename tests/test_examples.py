"""Every example runs from its first line to its last in its short form, without a warning, and writes no file.

Training is cut short here; a whole script: ``python -W error examples/plot_NAME.py --fast``.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))
# Several scripts a process, since the packages take longer to import than most scripts to run.
LONG = [script for script in EXAMPLES if script.stem in {"plot_action_to_score", "plot_samplers"}]
GROUPS = [[script for script in EXAMPLES if script not in LONG][first::4] for first in range(4)]
# A warning is an error, except those that the docstrings of POT cause where an installer left them uncompiled: the same
# exceptions as in pyproject.toml, and that short fits miss their ends. The -W option takes no patterns, so the first
# lines set them. Training ends after a few updates: what is tested is the script, and its pictures are looked at when
# the site is built.
RUNNER = """
import contextlib, io, runpy, sys, warnings
for kind in (DeprecationWarning, SyntaxWarning):
    warnings.filterwarnings("ignore", ".*invalid escape sequence", kind)
warnings.filterwarnings("ignore", "the fit does not transport the samples", UserWarning)
warnings.filterwarnings("ignore", ".*has not reached the whole cost", UserWarning)
import matplotlib.pyplot as plt
from sbridge.solvers.base import Method
Method.finished = lambda self, problem, state: state.step >= min(20, self.max_steps(problem))
scripts, sys.argv = sys.argv[1:], ["", "--fast"]
for sys.argv[0] in scripts:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert printed.getvalue().strip(), f"{sys.argv[0]} prints none of the numbers that it speaks about"
    plt.close("all")
"""


def test_there_are_examples():
    assert len(EXAMPLES) >= 17


def test_every_example_has_a_place_in_the_gallery():
    """The site cannot be built with an example that the order of the gallery leaves out."""
    tree = ast.parse((ROOT / "docs" / "_extensions" / "site_content.py").read_text(encoding="utf-8"))
    (order,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "EXAMPLES"]
    assert sorted(ast.literal_eval(order)) == [script.stem.removeprefix("plot_") for script in EXAMPLES]


def name(script):
    return script.stem.removeprefix("plot_")


@pytest.mark.parametrize(
    "scripts", [*GROUPS, pytest.param(LONG, marks=pytest.mark.slow)], ids=lambda scripts: ", ".join(map(name, scripts))
)
def test_examples_run(scripts, tmp_path):
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "SBRIDGE_CELLS")}
    environment = clean | {"MPLBACKEND": "Agg", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "error", "-c", RUNNER, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.iterdir()), "an example writes no files"


@pytest.mark.parametrize("script", EXAMPLES, ids=name)
def test_example_opens_like_a_page(script):
    lines = script.read_text().splitlines()
    title, rule = lines[0].removeprefix("r"), lines[1]
    assert title.startswith('"""')
    assert len(title) > 3
    assert set(rule) == {"="}
    assert len(rule) >= len(title) - 3, "a shorter underline is a warning of the site's build"
    assert 'FAST = "--fast" in sys.argv' in lines
    assert "savefig" not in script.read_text()
