"""What of the site is made from the package itself, and how its examples are called."""

import inspect
import os
import re
from pathlib import Path

from public_names import groups
from sphinx.ext import autosummary
from sphinx.util import logging

logger = logging.getLogger(__name__)

EXAMPLES = (
    # data to data
    "two_moons",
    "baselines",
    "cells",
    "momentum",
    "digits",
    # bridges with a known answer, and references
    "gaussian_bridge",
    "own_process",
    "urn",
    # costs
    "double_well",
    "unnormalised",
    # generation by reverse diffusion
    "double_moons_score",
    "samplers",
    "poisson",
    # what reverse diffusion is
    "fokker_planck",
    "naive_reversal",
    "same_marginals",
    "memorisation",
    "action_gap",
    "action_to_score",
    # physics of the action principle
    "entropy_production",
    "most_probable_path",
    "velocities",
)
"""The gallery from what most people come for to what fewer ask."""


class ByPurpose:
    """Sorts the files of the gallery by :data:`EXAMPLES`; an example that is not listed there is an error."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, filename):
        """The place of one file."""
        return EXAMPLES.index(Path(filename).stem.removeprefix("plot_"))

    def __repr__(self):
        return "<ByPurpose>"  # the gallery asks whether its settings have changed


def plain(text):
    """Text in which nothing is markup."""
    return re.sub(r"([\\_*`$<|\[\]{}~^])", r"\\\1", text)


def write_generated(app, name, lines):
    """Writes a page, or a part of one, that other pages include."""
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_identities(app):
    """One section for each identity that the package checks, as it describes itself."""
    from sbridge.identities import identities
    from sbridge.identities.base import GROUPS

    lines = [
        "# Identities",
        "",
        "`sbridge verify` checks these identities. It computes both sides of each by different routes. If they differ",
        "by more than three standard errors (plus the measured effect of the time step, where a chain is compared with",
        "the continuum), the check is repeated once with four times as many new draws. If they still differ, it fails.",
        "`--only NAME` takes names of identities and of groups.",
    ]
    for group in GROUPS:
        lines += ["", f"## {group[0].upper()}{group[1:]}"]
        for one in identities():
            if one.group == group:
                routes = f"left: {one.left}; right: {one.right}"
                lines += ["", f"### {one.name}", "", plain(f"{one.statement} ({one.equation})"), ""]
                lines += [f"*{one.kind.name.lower()}* · {plain(routes)}"]
    write_generated(app, "identities.md", lines)


def write_names(app):
    """The public names by kind, each linked to its description."""
    lines = []
    for heading, names in groups().items():
        lines += [f"## {heading}", ""]
        if heading == "Rooms":
            import sbridge

            homes = {name: getattr(sbridge, name).__name__ for name in names}
            lines += [f"- `sb.{name}`: {{py:mod}}`{home}`" for name, home in homes.items()]
        else:
            lines += ["```{eval-rst}", ".. autosummary::", "   :nosignatures:", ""]
            lines += [f"   ~sbridge.{name}" for name in names] + ["```"]
        lines.append("")
    write_generated(app, "names.txt", lines)


def homes_of(target):
    """Addresses under which what is at ``sbridge.…`` may be described: of its own module, and of packages above it."""
    import sbridge

    parts = target.removeprefix("sbridge.").split(".")
    thing, rest = sbridge, list(parts)
    while rest and inspect.ismodule(thing):
        thing = getattr(thing, rest.pop(0), None)
    if thing is None or inspect.ismodule(thing):
        return [thing.__name__] if thing else []
    module, tail = str(getattr(thing, "__module__", "")), ".".join([getattr(thing, "__name__", ""), *rest])
    above = module.split(".")
    return [".".join([*above[:depth], tail]) for depth in range(len(above), 1, -1)]


def resolve_at_root(app, env, node, contnode):
    """Links ``sbridge.NAME`` and ``sbridge.ROOM.NAME`` to where NAME is described."""
    if node.get("refdomain") != "py":
        return None
    domain, page = env.domains["py"], node.get("refdoc", "")
    target = node["reftarget"] if node["reftarget"].startswith("sbridge.") else f"sbridge.{node['reftarget']}"
    for home in homes_of(target):
        found = domain.resolve_xref(env, page, app.builder, node["reftype"], home, node, contnode)
        if found is not None:
            return found
    if node["reftarget"].startswith("sbridge.") and not page.startswith("api/"):
        logger.warning("no description of %s to link to", node["reftarget"], location=node)
    return None


def setup(app):
    """What is written before anything is read, and where names lead."""
    autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "Prop.", "Phys.")  # no end of a summary's first sentence
    app.connect("builder-inited", write_identities)
    app.connect("builder-inited", write_names)
    app.connect("missing-reference", resolve_at_root)


def arguments(gallery_conf, script_vars):
    """What every example is called with: ``--fast``, unless full sizes are asked for by ``SBRIDGE_GALLERY=full``."""
    return [] if os.environ.get("SBRIDGE_GALLERY") == "full" else ["--fast"]
