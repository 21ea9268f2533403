"""Every link of the built site leads to a page and an anchor that are there; nothing is fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


def on_post_build(config: Any) -> None:
    """Look at what has been built."""
    from mkdocs.exceptions import PluginError

    found = faults(Path(config["site_dir"]))
    if found:
        raise PluginError("\n".join(["the site is not whole:", *found]))


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given[FETCHED[tag]])


def faults(site: Path) -> list[str]:
    """What is wrong with the links of a site."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(site)
        if name.name != "404.html":  # its links are from the root, wherever that is
            found += [f"{name}: no {link}" for link in page.links if not _leads(link, path, pages)]
        found += [f"{name} fetches {one}" for one in page.fetched if urlsplit(one).netloc]
    for style in sorted(site.rglob("*.css")):
        outside = re.findall(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^\"')]+)", style.read_text())
        found += [f"{style.relative_to(site)} fetches {one}" for one in outside]
    return found


def _leads(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    """Whether a link leads to something that is there; links to elsewhere are the reader's own."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    there = there / "index.html" if there.is_dir() else there
    if there not in pages:
        return there.is_file() and not parts.fragment
    return not parts.fragment or unquote(parts.fragment) in pages[there].anchors or parts.fragment == "__top"
