"""Variant effect scores: do damaging variants score apart from silent ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm.report import formats
from dnassm.report.content import Column, Fact, Section, Table
from dnassm.report.figures.variants import auroc_figure, scores_figure
from dnassm.report.loading import need, number, read_provenance, read_record
from dnassm.report.section import SECTIONS, SectionReader
from dnassm.report.verdict import verdict

_STRONGEST = 10
_COLUMNS = (
    Column(key="id", title="Variant", form="code"),
    Column(key="contig", title="Contig", form="code"),
    Column(key="position", title="Position (0-based)", form="count"),
    Column(key="change", title="Change", form="code"),
    Column(key="effect", title="Effect"),
    Column(key="score", title="Score", form="float"),
)


@SECTIONS.register("variants")
class VariantsReader(SectionReader):
    """Reads variants.json."""

    order = 5
    holds = "variant scores (variants.json or the folder with it)"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is variants.json or the folder with it."""
        return path.name == "variants.json" or (path / "variants.json").is_file()

    def read(self, path: Path, key: str) -> Section:
        """Read the scores."""
        file = path if path.name == "variants.json" else path / "variants.json"
        record = read_record(file)
        listed = [_variant(each, file) for each in need(record, "variants", file, list)]
        scored = [variant for variant in listed if variant["score"] is not None]
        score_name = str(record.get("score_name") or "score")
        areas = _areas(record)
        return Section(
            title="Variant effects",
            source=str(path),
            says=_says(scored, areas, score_name),
            notes=_notes(listed, scored),
            facts=_facts(areas),
            blocks=(
                *scores_figure(key, _by_effect(scored), score_name),
                *auroc_figure(key, areas),
                *([_table(scored, score_name)] if scored else []),
            ),
            provenance=read_provenance(file.parent / "run.json"),
        )


def _variant(record: Any, path: Path) -> dict[str, Any]:
    contig = str(need(record, "contig", path, str))
    position = need(record, "position", path, int)
    effect = record.get("effect")
    change = f"{_allele(record.get('ref'))}→{_allele(record.get('alt'))}"
    return {
        "id": str(record.get("id") or f"{contig}:{position + 1}"),
        "contig": contig,
        "position": position,
        "change": change,
        "effect": None if effect is None else str(effect),
        "score": number(record.get("score")),
    }


def _allele(value: Any) -> str:
    text = str(value or "?")
    return text if len(text) <= 12 else f"{text[:9]}… ({len(text)} bp)"


def _areas(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the AUROC of the model, then that of the baseline, where they were measured."""
    areas = [{"name": "the model", **_area(record)}]
    baseline = record.get("baseline")
    if isinstance(baseline, Mapping):
        areas.append({"name": str(baseline.get("name") or "the baseline"), **_area(baseline)})
    return [area for area in areas if area["value"] is not None]


def _area(record: Mapping[str, Any]) -> dict[str, float | None]:
    names = {"value": "auroc", "low": "auroc_low", "high": "auroc_high"}
    return {bound: number(record.get(name)) for bound, name in names.items()}


def _by_effect(variants: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for variant in variants:
        groups.setdefault(variant["effect"] or "unknown effect", []).append(variant["score"])
    return groups


def _says(
    variants: Sequence[Mapping[str, Any]], areas: Sequence[Mapping[str, Any]], score_name: str
) -> tuple[str, ...]:
    if not variants:
        return ("No variant was scored.",)
    text = f"{formats.plural(len(variants), 'variant')} scored by {score_name}"
    if not areas or areas[0]["name"] != "the model":
        return (f"{text}.",)
    effects = sorted({variant["effect"] for variant in variants if variant["effect"]})
    sides = " from ".join(effects) if len(effects) == 2 else "the effect classes"
    text += f"; the score tells {sides} with AUROC {_interval(areas[0])} (0.5 is chance)"
    if len(areas) == 1:
        return (f"{text}.",)
    ours, theirs = areas
    judged = verdict(("The model", ours), (theirs["name"], theirs))
    return (f"{text}; {theirs['name']} {_interval(theirs)}. {judged}",)


def _interval(area: Mapping[str, Any]) -> str:
    bounds = formats.interval(area["low"], area["high"])
    return " ".join(filter(None, (formats.decimals(area["value"], 3), bounds)))


def _notes(
    listed: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    missing = len(listed) - len(scored)
    notes = [f"{formats.plural(missing, 'variant')} without a score left out."] if missing else []
    if scored and not any(variant["effect"] for variant in scored):
        notes.append("No variant has a known effect, so no AUROC can be computed.")
    return tuple(notes)


def _facts(areas: Sequence[Mapping[str, Any]]) -> tuple[Fact, ...]:
    return tuple(
        Fact(value=formats.decimals(area["value"], 3), label="AUROC, variant effects")
        for area in areas
        if area["name"] == "the model"
    )


def _table(variants: Sequence[Mapping[str, Any]], score_name: str) -> Table:
    ranked = sorted(variants, key=lambda variant: -abs(variant["score"]))
    hidden = len(ranked) - _STRONGEST
    return Table(
        name="strongest",
        caption=f"Strongest variants, by the size of the {score_name}",
        columns=_COLUMNS if any(v["effect"] for v in ranked) else [*_COLUMNS[:4], _COLUMNS[5]],
        rows=ranked,
        shown=_STRONGEST if hidden > 0 else None,
        more=f"{formats.count(hidden)} more variants" if hidden > 0 else "",
    )
