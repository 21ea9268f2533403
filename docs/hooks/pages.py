"""Pages that are kept elsewhere: files of the repository, and what the command line says of itself.

Links from one of these files to another lead to its page; those to files that the site does not have become
text.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {
    "ARCHITECTURE.md": "internals/architecture.md",
    "CONTRIBUTING.md": "internals/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
    "SECURITY.md": "reference/security.md",
    "benchmarks/README.md": "internals/benchmarks.md",
    "docs/decisions.md": "decisions.md",
}
# A page that a command makes, of a Llama of two layers.
DRAWN = "explain/llama.html"
PLAN = ["plan", "llama", "--compare", "1,2,4", "--length", "2048"]
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "vocab_size": 4096,
}
WIDTH = "88"  # columns of help


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        if not source.startswith("docs/"):
            text = linked((ROOT / source).read_text(), source, page)
            files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    settings = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
    with TemporaryDirectory() as folder:
        page = Path(folder, "llama.html")
        printed(*PLAN, "--page", str(page), *settings)
        files.append(File.generated(config, DRAWN, content=page.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is kept elsewhere in the place of its mark, `<!-- variables -->` say."""
    for name, text in MARKS.items():
        mark = f"<!-- {name} -->"
        markdown = markdown.replace(mark, text()) if mark in markdown else markdown
    return markdown


def variables() -> str:
    """The environment variables, as a table."""
    from tpfx.console.environment import VARIABLES

    rows = [f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()]
    return "\n".join(["| Variable | What it does |", "|---|---|", *rows])


def versions() -> str:
    """What CONTRIBUTING.md says of versions."""
    _, _, found = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Versions, and what may change\n")
    if not found:
        raise SystemExit("CONTRIBUTING.md has no section of versions any more")
    return found.partition("\n## ")[0]


MARKS = {"variables": variables, "versions": versions}


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


def printed(*words: str) -> str:
    """What a command of tpfx prints."""
    os.environ |= {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}
    from typer.testing import CliRunner

    from tpfx.cli import app

    shown = CliRunner().invoke(app, words, prog_name="tpfx", color=False)
    if shown.exit_code:
        raise SystemExit(f"tpfx {' '.join(words)} fails: {shown.output}") from shown.exception
    return shown.stdout.strip()


def command_line() -> str:
    """The help of each command, as it prints it."""
    import typer

    from tpfx.cli import app

    return "\n".join([INTRODUCTION, *_helps(typer.main.get_command(app), ())])


def _helps(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    yield f"## {' '.join(['tpfx', *words])}\n\n```text\n{printed(*words, '--help')}\n```\n"
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, (*words, name))


INTRODUCTION = """# Command line

What each command says of itself with `--help`. What was asked for is on standard output, progress and errors
on standard error; an error is one line.
"""
