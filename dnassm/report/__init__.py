"""One self-contained HTML page from the artifacts of the straight line.

Each kind of artifact is one file in ``sections/``, which reads JSON and tables, and one in
``figures/``, which draws them; the page is rendered from what was read, and holds it as JSON too.
"""

from __future__ import annotations

from dnassm.report.build import build_report

__all__ = ["build_report"]
