"""Takes pictures of what tpfx shows: README, documentation, command line, a report in a notebook, the page.

    make docs screenshots                   all, into build/screenshots; those of the page into docs/howto
    make screenshots ARGS="page verdict"    some

It needs Chromium. Look at each before it is committed.
"""

from __future__ import annotations

import contextlib
import io
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from markdown_it import MarkdownIt
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "screenshots"
DOCS = ROOT / "docs" / "howto"
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
CALL = ["--set", "dtype=bfloat16", "--length", "2048", "--topology", "rtx-3090"]
STYLE = """
body { margin: 32px auto; max-width: 860px; font: 16px/1.5 system-ui, sans-serif; color: #1f2328 }
pre { padding: 16px; overflow: hidden; border-radius: 6px; background: #f6f8fa; font-size: 13px }
.terminal { margin: 0; padding: 20px; background: #16181d; color: #e6e6e6; line-height: 1.3 }
code { font-family: "Liberation Mono", monospace } a { color: #0969da } img { max-width: 100% }
table { margin-bottom: 16px; border-collapse: collapse }
th, td { padding: 4px 12px; border: 1px solid #d1d9e0 }
"""


def main(names: Sequence[str]) -> None:
    """Take the pictures of these names, or all."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("Chromium is not there: install it, or put it on PATH")
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name in names or PICTURES:
            PICTURES[name](lambda **how: chromium.new_context(**how).new_page())
        chromium.close()


Open = Callable[..., Page]  # a new tab, of a size and a colour scheme


def readme(new: Open) -> None:
    """As it is rendered, but for what a site adds around it."""
    text = MarkdownIt("commonmark").enable("table").render((ROOT / "README.md").read_text())
    kept(written(new(viewport=WIDE), text, ROOT / "build" / "readme.html"), OUT / "readme.png")


def docs(new: Open) -> None:
    """Their first page, as `make docs` has built it."""
    tab = new(viewport=WIDE)
    tab.goto((ROOT / "site" / "index.html").as_uri())
    kept(tab, OUT / "docs.png")


def verdict(new: Open) -> None:
    """What the command line answers."""
    command = ["tpfx", "plan", "llama", "-n", "2", *CALL]
    text = f"$ {' '.join(command)}\n{on_terminal(*command)}"
    tab = written(new(viewport=WIDE), f'<pre class="terminal">{escape(text)}</pre>', OUT / "verdict.html")
    kept(tab, OUT / "verdict.png", "pre")


def notebook(new: Open) -> None:
    """A report, as a notebook shows it."""
    import tpfx

    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512))
    model = tpfx.compile(model, ["cpu", "cpu"])
    with torch.no_grad():
        model(torch.randn(4, 512))
    tab = written(new(viewport=WIDE), tpfx.report(model)._repr_html_(), OUT / "notebook.html")
    kept(tab, OUT / "notebook.png", "body")


def page(new: Open) -> None:
    """The page of Llama 7B: wide, dark, and on a phone, where a weight is explained."""
    path = ROOT / "build" / "llama.html"
    ran("tpfx", "plan", "llama", "--compare", "1,2,4,8", *CALL, "--page", str(path))
    tab = new(viewport=WIDE)
    tab.goto(path.as_uri())
    tab.click("#counts button:nth-child(3)")
    kept(tab, DOCS / "page.png")
    dark = new(viewport=WIDE, color_scheme="dark")
    dark.goto(path.as_uri())
    dark.click("#counts button:nth-child(3)")
    dark.click("#view-time")
    kept(dark, DOCS / "page-dark.png")
    phone = new(viewport=PHONE)
    phone.goto(path.as_uri())
    phone.click("#counts button:nth-child(3)")
    phone.fill("#search", "q_proj weight")
    phone.keyboard.press("Enter")
    kept(phone, DOCS / "page-phone.png")


PICTURES = {"readme": readme, "docs": docs, "verdict": verdict, "notebook": notebook, "page": page}


def ran(*command: str) -> str:
    """What a command prints."""
    environment = os.environ | {"COLUMNS": "110", "TPFX_PROGRESS": "0", "NO_COLOR": "1"}
    words = [sys.executable, "-m", *command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} fails: {done.stderr}")
    return done.stdout


def on_terminal(*command: str, columns: int = 100) -> str:
    """What a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (60, columns))
    words = [sys.executable, "-m", *command]
    environment = os.environ | {"NO_COLOR": "1"}
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        found = b""
        with contextlib.suppress(OSError):  # which says that the command has ended
            while more := os.read(ours, 65536):
                found += more
    return found.decode().replace("\r", "")


def written(tab: Page, body: str, path: Path) -> Page:
    """A page of these contents, which lies where its links lead somewhere."""
    base = f'<base href="{ROOT.as_uri()}/">'
    path.write_text(f"<!doctype html><meta charset=utf-8>{base}<style>{STYLE}</style><body>{body}", "utf-8")
    tab.goto(path.as_uri())
    return tab


def kept(tab: Page, path: Path, part: str | None = None) -> None:
    """A picture of a tab or of a part of it, in few colours, which makes it small."""
    taken: dict[str, Any] = {"animations": "disabled"}
    data = tab.locator(part).screenshot(**taken) if part else tab.screenshot(**taken)
    Image.open(io.BytesIO(data)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
        path, optimize=True
    )
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
