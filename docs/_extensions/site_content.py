"""What of the site is made from the package itself, and how its examples are called."""

import os
import re
from pathlib import Path


def plain(text):
    """Text in which nothing is markup."""
    return re.sub(r"([\\_*`$<|\[\]{}~^])", r"\\\1", text)


def write_identities(app):
    """One section for each identity that the package checks, as it describes itself."""
    from sbridge.identities import identities
    from sbridge.identities.base import GROUPS

    lines = [
        "# Identities",
        "",
        "What `sbridge verify` checks, by two routes each. A miss by more than three standard errors (and the measured",
        "effect of the time step, where a chain meets the continuum) is repeated once with other draws, four times as",
        "many; a second one counts. `--only NAME` takes names of identities and of groups.",
    ]
    for group in GROUPS:
        lines += ["", f"## {group[0].upper()}{group[1:]}"]
        for one in identities():
            if one.group == group:
                routes = f"left: {one.left}; right: {one.right}"
                lines += ["", f"### {one.name}", "", plain(f"{one.statement} ({one.equation})"), ""]
                lines += [f"*{one.kind.name.lower()}* · {plain(routes)}"]
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    (folder / "identities.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app):
    """What is written before anything is read."""
    app.connect("builder-inited", write_identities)


def arguments(gallery_conf, script_vars):
    """What every example is called with: ``--fast``, unless full sizes are asked for by ``SBRIDGE_GALLERY=full``."""
    return [] if os.environ.get("SBRIDGE_GALLERY") == "full" else ["--fast"]
