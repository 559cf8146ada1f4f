"""Who wins, said plainly, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping

Score = Mapping[str, float | None]


def verdict(ours: tuple[str, Score], theirs: tuple[str, Score]) -> str:
    r"""Say who has the higher score, and whether the 95 % intervals allow to be sure of it.

    Args:
        ours: name and ``{"value", "low", "high"}`` of one model; `low` and `high` may be None.
        theirs: the same of the other one.

    >>> verdict(("The probe", {"value": 0.95, "low": 0.94, "high": 0.96}),
    ...         ("The k-mer model", {"value": 0.97, "low": 0.95, "high": 0.98}))
    'The k-mer model is ahead, but the 95\xa0% intervals overlap: the lead may be chance.'
    """
    (_, first), (_, second) = ours, theirs
    if round(first["value"] or 0, 3) == round(second["value"] or 0, 3):
        return "It is a tie."
    ahead = (first["value"] or 0) > (second["value"] or 0)
    (name, winner), (_, loser) = (ours, theirs) if ahead else (theirs, ours)
    name = f"{name[:1].upper()}{name[1:]}"
    if winner["low"] is None or loser["high"] is None:
        return f"{name} wins; without intervals one cannot say by how sure a margin."
    if winner["low"] > loser["high"]:
        return f"{name} wins, and the 95\u00a0% intervals do not overlap."
    return f"{name} is ahead, but the 95\u00a0% intervals overlap: the lead may be chance."
