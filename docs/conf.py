"""How the site is built: ``sphinx-build -W --keep-going docs docs/_build``; ``SBRIDGE_GALLERY=full`` for full sizes."""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import sbridge  # noqa: E402  (the tree that this file stands in, not one that is installed)

project = "sbridge"
author = "The sbridge developers"
project_copyright = author
version = release = sbridge.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the site is read without a network
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "site_content",
    "local_links",
]
exclude_patterns = ["_build", "**/*.ipynb"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"sbridge {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
linkcheck_ignore = [r"https?://.*"]  # what is checked without a network: links inside the site

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
PACKAGES = [f"sbridge.{init.parent.name}" for init in ROOT.glob("sbridge/*/__init__.py")]


def defined_elsewhere(package):
    """Names that ``package`` hands out and another package of sbridge defines, where their reference is."""
    module = importlib.import_module(package)
    homes = {name: getattr(getattr(module, name), "__module__", None) for name in getattr(module, "__all__", ())}
    return [
        name
        for name, home in homes.items()
        if f"{home}.".startswith("sbridge.") and not f"{home}.".startswith(f"{package}.")
    ]


autosummary_context = {
    "packages": PACKAGES,
    "elsewhere": {package: names for package in PACKAGES if (names := defined_elsewhere(package))},
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_.*\.py",
    "reset_argv": "site_content.arguments",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),  # what an example prints, not what its last line happens to return
    "write_computation_times": False,
    "within_subsection_order": "site_content.ByPurpose",
}
