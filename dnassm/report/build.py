"""From paths to a page: recognise each artifact, read it, render, write it in one go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnassm.artifact import check_target, staged_file
from dnassm.errors import ArtifactError
from dnassm.report.content import Section
from dnassm.report.page import render_page
from dnassm.report.section import SECTIONS, SectionReader


def build_report(
    paths: Sequence[Path],
    out: Path,
    *,
    title: str = "dnassm report",
    words: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write one self-contained HTML page about the artifacts at `paths`; returns `out`.

    A folder that is no artifact itself stands for the artifacts directly inside it.

    Args:
        paths: artifact folders or files; the sections follow the straight line, whatever the order.
        out: the page.
        title: its heading.
        words: sentences for the top of the page; without them the report derives its own.
        force: replace `out` if it exists.

    Raises:
        ArtifactError: a path does not exist or is not recognised, or `out` is taken.
        FormatError: an artifact does not hold what its format asks for.
    """
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder; expected a file such as report.html")
    check_target(out, force=force)
    sections = read_sections(paths)
    page = render_page(sections, title=title, words=words)
    with staged_file(out) as staging:
        staging.write_text(page, encoding="utf-8")
    return out


def read_sections(paths: Sequence[Path]) -> list[Section]:
    """Read every artifact, in the order of the straight line.

    Raises:
        ArtifactError: no path is given, or one does not exist or is not recognised.
    """
    readers = [SECTIONS[name]() for name in SECTIONS.names()]
    found: dict[Path, tuple[SectionReader, Path]] = {}
    for path in paths:
        for reader, artifact in _recognise(path, readers):
            found.setdefault(artifact.resolve(), (reader, artifact))
    if not found:
        raise ArtifactError(f"report: expected at least one artifact; it shows {_known(readers)}")
    in_order = sorted(found.values(), key=lambda pair: pair[0].order)
    return [
        reader.read(artifact, f"s{place}") for place, (reader, artifact) in enumerate(in_order, 1)
    ]


def _recognise(path: Path, readers: Sequence[SectionReader]) -> list[tuple[SectionReader, Path]]:
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; expected {_known(readers)}")
    own = [(reader, path) for reader in readers if reader.recognises(path)][:1]
    if own or not path.is_dir():
        inside = own
    else:
        children = sorted(path.iterdir())
        inside = [
            pair
            for child in children
            if not child.name.startswith(".")
            for pair in [(reader, child) for reader in readers if reader.recognises(child)][:1]
        ]
    if not inside:
        raise ArtifactError(
            f"{path}: not an artifact that report knows; it shows {_known(readers)}"
        )
    return inside


def _known(readers: Sequence[SectionReader]) -> str:
    return "; ".join(reader.holds for reader in sorted(readers, key=lambda each: each.order))
