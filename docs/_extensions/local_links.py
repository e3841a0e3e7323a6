"""Every link inside the site that was built leads to a file, and to an anchor in it; what does not is a warning.

Sphinx checks references in the sources. Links that a theme, a gallery or a page's own HTML adds are seen only here.
"""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ADDRESSES = ("href", "src")
ALWAYS_THERE = {"", "top"}  # anchors that every browser knows


class Page(HTMLParser):
    """The anchors of one page, and the addresses that it names."""

    def __init__(self):
        super().__init__()
        self.anchors, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        """Keep what a link can lead to and where links lead."""
        named = {name: value for name, value in attrs if value}
        self.anchors |= {named[key] for key in ("id", "name") if key in named and (key == "id" or tag == "a")}
        self.addresses += [named[key] for key in ADDRESSES if key in named]


def read(file):
    """A parsed page."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def broken_links(folder):
    """``(page, address)`` of every local address below a folder of HTML that leads nowhere."""
    folder = Path(folder).resolve()
    pages = {file: read(file) for file in sorted(folder.rglob("*.html"))}
    for file, page in pages.items():
        for address in dict.fromkeys(page.addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            goal = goal / "index.html" if goal.is_dir() else goal
            anchor = unquote(parts.fragment)
            found = goal.is_file() and (goal not in pages or anchor in ALWAYS_THERE or anchor in pages[goal].anchors)
            if not found:
                yield file.relative_to(folder), address


def check(app, exception):
    """Warn of broken links, once the site is written; with ``-W`` a warning fails the build."""
    from sphinx.util import logging  # a test looks for broken links without Sphinx

    logger = logging.getLogger(__name__)
    if exception is None and app.builder.format == "html":
        for page, address in broken_links(app.outdir):
            logger.warning("%s: nothing at %s", page, address)


def setup(app):
    """Called by Sphinx."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
