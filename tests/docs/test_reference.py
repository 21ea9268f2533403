"""The reference is complete, and what the site is made of is there."""

from __future__ import annotations

import re
from pathlib import Path

import tpfx
from docs.hooks.links import faults
from docs.hooks.pages import DRAWN, PAGES

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_in_the_reference() -> None:
    """By its name, but for `plan`: a room is called so too, and what is shown by that name is the room."""
    text = (ROOT / "docs/reference/api.md").read_text()
    listed = re.findall(r"^::: tpfx\.(?:plan\.make\.)?(\w+)$", text, re.MULTILINE)
    rooms = {room.name for room in (ROOT / "tpfx").iterdir() if room.is_dir()}
    assert sorted(listed) == sorted(tpfx.__all__)
    assert [name for name in rooms if f"::: tpfx.{name}\n" in text] == []


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= named


MADE = {"reference/cli.md", DRAWN}  # when the site is built


def test_links_lead_somewhere() -> None:
    """Those of pages, and of files that are read in the repository; `make docs` looks at the built site."""
    outside = [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", ROOT / "examples/README.md"]
    files = [*outside, *(ROOT / "docs").rglob("*.md")]
    assert len(files) > 25
    assert [f"{file.name}: {link}" for file in files for link in _links(file) if not _leads(file, link)] == []


def _links(file: Path) -> list[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)]


def _leads(file: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    there = (file.parent / path).resolve() if path else file
    page = str(there.relative_to(ROOT / "docs")) if there.is_relative_to(ROOT / "docs") else ""
    there = next((ROOT / source for source, made in PAGES.items() if made == page), there)
    return page in MADE or (there.exists() and (not anchor or anchor in _anchors(there)))


def _anchors(file: Path) -> set[str]:
    text = file.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    objects = re.findall(r"^::: (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings} | set(objects)


def test_nothing_is_fetched_when_the_site_is_read(tmp_path: Path) -> None:
    """What the check of `make docs` finds: dead links, missing anchors, and what lies elsewhere."""
    (tmp_path / "index.html").write_text(
        '<h1 id="a">A</h1><a href="#a">.</a><a href="b.html#there">.</a><a href="https://pytorch.org">.</a>'
        '<a href="c.html">.</a><a href="b.html#gone">.</a><script src="https://cdn.example/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="image.png">')
    (tmp_path / "style.css").write_text("@import url(https://fonts.example/roboto.css); a { color: red }")
    assert faults(tmp_path) == [
        "index.html: no c.html",
        "index.html: no b.html#gone",
        "index.html fetches https://cdn.example/x.js",
        "style.css fetches https://fonts.example/roboto.css",
    ]
