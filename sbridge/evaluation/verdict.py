"""The verdict of a certificate, which a report shows without the numbers that it follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sbridge.errors import FileFormatError, shown
from sbridge.storage.documents import Json

SCHEMA = "sbridge.certificate/1"


@dataclass(frozen=True)
class Verdict:
    """A verdict (``pass``, ``fail`` or ``inconclusive``) with its reason."""

    word: str
    reason: str

    def __str__(self) -> str:
        """Returns the verdict and the reason."""
        return f"{self.word.capitalize()}: {self.reason}"

    @classmethod
    def of_certificate(cls, document: Mapping[str, Json]) -> Verdict:
        """Reads the verdict from what :meth:`Certificate.to_json` wrote.

        Raises:
            FileFormatError: if it is no certificate, or has no verdict.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise FileFormatError(f"not a certificate: a mapping with schema {SCHEMA!r} is needed.")
        try:
            return cls(str(document["verdict"]["word"]), str(document["verdict"]["reason"]))
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"the certificate has no verdict: {shown(error)}.") from error
