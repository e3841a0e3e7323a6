"""Names of methods in the literature, and the classes of this package that implement them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        names: what papers and their code call it; the first is the usual one.
        here: the call in this package.
        paper: authors, year and arXiv number.
    """

    names: tuple[str, ...]
    here: str
    paper: str


METHODS = (
    Method(("LightSB", "LightSBM"), "MixtureBridge()", "Korotin et al. 2024, arXiv:2310.01174"),
    Method(
        ("DSB", "DiffusionSchrodingerBridge"),
        "IPF(forward=solvers.MeanMatching(), backward=solvers.MeanMatching())",
        "De Bortoli et al. 2021, arXiv:2106.01357",
    ),
    Method(("DSBM-IPF",), "IPF()", "Shi et al. 2023, arXiv:2303.16852"),
    Method(("DSBM", "DSBM-IMF"), "IMF()", "Shi et al. 2023, arXiv:2303.16852"),
    Method(("IDBM",), "IMF()", "Peluchetti 2023, arXiv:2304.00917"),
    Method(("[SF]²M", "SF2M"), "MatchedBridge()", "Tong et al. 2024, arXiv:2307.03672"),
    Method(("OT-CFM",), "MatchedBridge(coupling=couplings.MinibatchCoupling())", "Tong et al. 2024, arXiv:2302.00482"),
    Method(("ASBS",), "AdjointBridge()", "Liu et al. 2025, arXiv:2506.22565"),
    Method(("AdjointSampling",), "ReciprocalAdjointMatching()", "Havens et al. 2025, arXiv:2504.11713"),
    Method(("PIS",), "sampling_problem(), solved by RelativeEntropy()", "Zhang & Chen 2022, arXiv:2111.15141"),
    Method(("DIS",), "sampling_problem(), solved by LogVariance()", "Berner et al. 2022, arXiv:2211.01364"),
    Method(("DDPM",), "diffuse(), then samplers.AncestralSampler()", "Ho et al. 2020, arXiv:2006.11239"),
    Method(("DDIM",), "diffuse(), then samplers.DDIMSampler()", "Song et al. 2021, arXiv:2010.02502"),
)
"""All methods known by a name that this package does not use."""


def hint(name: str) -> str:
    """Returns a hint for an error message on the method called ``name``; empty if no method has that name."""
    wanted = _plain(name)
    for method in METHODS:
        if wanted in map(_plain, method.names):
            return f": {method.names[0]} ({method.paper}) is sbridge.{method.here}"
    return ""


def _plain(name: str) -> str:
    """Reduces a name to lower-case letters and digits."""
    return "".join(letter for letter in name.lower().replace("²", "2") if letter.isalnum())
