"""Pages that are kept elsewhere: files of the repository, and what the command line says of itself.

Links from one of these files to another lead to its page; those to files that the site does not have become
text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "ARCHITECTURE.md": "internals/architecture.md",
    "CONTRIBUTING.md": "internals/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
    "SECURITY.md": "reference/security.md",
    "benchmarks/README.md": "internals/benchmarks.md",
    "docs/decisions.md": "decisions.md",
}
VARIABLES = "<!-- variables -->"
WIDTH = "100"  # columns of help


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        if not source.startswith("docs/"):
            text = linked((ROOT / source).read_text(), source, page)
            files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of variables in its place."""
    if VARIABLES not in markdown:
        return markdown
    from tpfx.console.environment import VARIABLES as known

    rows = [f"| `{name}` | {meaning} |" for name, meaning in known.items()]
    return markdown.replace(VARIABLES, "\n".join(["| Variable | What it does |", "|---|---|", *rows]))


def linked(text: str, source: str, page: str) -> str:
    """A file's text with its links as they are from its page."""

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not path:
            return found[0]
        there = PAGES.get(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if there is None:
            return words
        return (
            f"[{words}]({posixpath.relpath(there, posixpath.dirname(page))}{'#' + anchor if anchor else ''})"
        )

    return re.sub(r"\[([^\]\n]*)\]\(([^)\s]+)\)", link, text)


def command_line() -> str:
    """The help of each command, as it prints it."""
    os.environ |= {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}
    import typer
    from typer.testing import CliRunner

    from tpfx.cli import app

    runner = CliRunner()

    def help_of(*words: str) -> str:
        shown = runner.invoke(app, [*words, "--help"], prog_name="tpfx", color=False)
        if shown.exit_code:
            raise SystemExit(f"tpfx {' '.join(words)} --help fails: {shown.output}")
        name = " ".join(["tpfx", *words])
        return f"## {name}\n\n```text\n{shown.output.strip()}\n```\n"

    def helps(command: Any, words: tuple[str, ...]) -> list[str]:
        inner = getattr(command, "commands", {})
        return [help_of(*words), *(text for name in inner for text in helps(inner[name], (*words, name)))]

    return "\n".join([INTRODUCTION, *helps(typer.main.get_command(app), ())])


INTRODUCTION = """# Command line

What each command says of itself with `--help`. What was asked for is on standard output, progress and errors
on standard error; an error is one line.
"""
