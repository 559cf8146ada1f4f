"""The page as a whole: complete, self-contained, valid, safe, the same every time."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dnassm.errors import ArtifactError
from dnassm.report import build_report
from dnassm.report.figures.canvas import COLOURS

VOID = {"meta", "br"}
ORDER = ["Genome", "Pretraining", "Embeddings", "Classification", "Variant effects"]


class Page(HTMLParser):
    """What a browser would see: nesting, ids, headings, JSON, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.json: dict[str, dict] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        self.script = values.get("id") or "" if tag == "script" else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)
        if self.open and self.open[-1] == "script":
            self.json[self.script] = json.loads(data)


@pytest.fixture(scope="module")
def text(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return build_report([artifacts], out, title="The straight line").read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_sections_follow_the_straight_line_whatever_the_order_of_the_paths(artifacts, tmp_path):
    names = ["variants", "classifier", "windows.npy", "genome", "run"]
    out = build_report([artifacts / name for name in names], tmp_path / "r.html")
    headings = [text for level, text in Page(out.read_text()).headings if level == 2]
    assert headings == ["What you see", *ORDER]


def test_a_folder_of_artifacts_stands_for_what_it_holds(page):
    assert [text for level, text in page.headings if level == 2][1:] == ORDER


def test_tags_are_nested_and_ids_are_unique(page):
    assert page.problems == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_reference_inside_the_page_has_its_target(text, page):
    targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in targets} <= set(page.ids)


def test_the_page_needs_nothing_from_outside(text, page):
    outside = [
        (tag, name)
        for tag, values in page.tags
        for name in ("src", "href", "xlink:href", "data", "action")
        if name in values and not (values[name] or "").startswith("#")
    ]
    assert outside == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    scripts = [values for tag, values in page.tags if tag == "script"]
    assert {values.get("type") for values in scripts} == {"application/json"}


def test_the_page_is_small(text):
    assert len(text.encode()) < 3_000_000


def test_headings_never_skip_a_level(page):
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_drawing_says_what_it_shows_and_every_table_has_a_caption(page):
    drawings = [values for tag, values in page.tags if tag == "svg"]
    assert len(drawings) >= 10
    assert all(
        values["role"] == "img" and len(values["aria-label"] or "") > 20 for values in drawings
    )
    count = {tag: sum(each == tag for each, _ in page.tags) for tag in ("table", "caption")}
    assert count["table"] == count["caption"] >= 6


def test_every_table_is_in_the_page_as_json(page):
    assert len(page.json) == sum(tag == "table" for tag, _ in page.tags)
    contigs = page.json["s1-contigs-json"]
    assert [row["name"] for row in contigs["rows"]] == ["whole genome", "chr1", "chr2", "plasmid"]
    assert contigs["rows"][1]["length"] == 812_344


def test_the_same_artifacts_give_the_same_bytes(artifacts, text, tmp_path):
    again = build_report([artifacts], tmp_path / "again.html", title="The straight line")
    assert again.read_text() == text


def test_every_colour_of_the_drawings_follows_the_theme(text):
    css = (Path(build_report.__code__.co_filename).parent / "page.css.j2").read_text()
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for name, value in COLOURS.items():
        assert f"--{name}: {value};" in light
        assert f"--{name}: #" in dark
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all(not re.search(r"#[0-9a-f]{6}\b", drawing) for drawing in drawings)


def test_words_of_the_caller_stand_at_the_top(artifacts, tmp_path):
    out = build_report([artifacts / "genome"], tmp_path / "r.html", words=["It <works> & runs."])
    top = out.read_text().split("<main>")[0]
    assert "It &lt;works&gt; &amp; runs." in top
    assert "contigs" not in top


def test_provenance_names_command_seed_versions_and_inputs(text):
    for part in ("dnassm pretrain --genome genome", "torch 2.13.0", "sha256", "genome.fa", "cpu ("):
        assert part in text


def test_an_unknown_path_is_refused_with_what_is_recognised(tmp_path):
    strange = tmp_path / "notes.txt"
    strange.write_text("hello")
    with pytest.raises(ArtifactError, match=r"notes\.txt: not an artifact.*store\.json.*variants"):
        build_report([strange], tmp_path / "r.html")
    with pytest.raises(ArtifactError, match="does not exist"):
        build_report([tmp_path / "nothing"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_an_existing_page_is_replaced_only_by_force(artifacts, tmp_path):
    out = tmp_path / "r.html"
    out.write_text("mine")
    with pytest.raises(ArtifactError, match="--force"):
        build_report([artifacts / "genome"], out)
    assert out.read_text() == "mine"
    build_report([artifacts / "genome"], out, force=True)
    assert out.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ArtifactError, match="is a folder"):
        build_report([artifacts / "genome"], tmp_path, force=True)


def test_importing_the_report_draws_nothing():
    code = "import sys, dnassm.report; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_two_artifacts_of_one_kind_are_told_apart_by_name(write, tmp_path):
    for name in ("first", "second"):
        write.pretraining(tmp_path / name)
    text = build_report([tmp_path], tmp_path / "r.html").read_text()
    for part in ("Pretraining first</a>", "Pretraining second</a>", "<li>second: The model needs"):
        assert part in text
