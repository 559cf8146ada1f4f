"""The contract of a section: what it recognises, what it reads, and where it stands on the page."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from dnassm.registry import Registry
from dnassm.report.content import Section


class SectionReader(abc.ABC):
    """Reads one kind of artifact; one file in ``sections/`` per kind."""

    #: Place on the straight line; sections stand in this order.
    order: ClassVar[int]
    #: What a user is told to pass, for example ``"genome store (folder with store.json)"``.
    holds: ClassVar[str]

    @abc.abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether `path` holds this kind of artifact; looks at names only and never raises."""

    @abc.abstractmethod
    def read(self, path: Path, key: str) -> Section:
        """Read the artifact; `key` prefixes every id of the section.

        Raises:
            FormatError: a file does not hold what its format asks for.
            ArtifactError: a file is missing or is not JSON.
        """


SECTIONS: Registry[type[SectionReader]] = Registry("report section", "dnassm.report.sections")
