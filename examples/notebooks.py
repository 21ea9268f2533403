"""Makes a notebook of each example that is written in cells.

    make notebooks                 # writes what has changed
    make notebooks ARGS=--run      # runs them too, and keeps what they show (ARGS="--run train": one)

In a script, `# %% [markdown]` begins a cell of text, of which each line is a comment, and `# %%` one of code,
in which a line `# %command` is one that only the notebook has. The scripts are what is edited; a test says
where a notebook differs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYTHON = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts() -> list[Path]:
    """The examples that are written in cells."""
    return [path for path in sorted(HERE.glob("*.py")) if path.read_text().startswith("# %%")]


def cells(script: str) -> list[tuple[str, str]]:
    """The kind of each cell of a script, "markdown" or "code", and its text.

    >>> cells("# %% [markdown]\\n# # Title\\n\\n# %%\\n# %pip install tpfx\\nimport tpfx\\n")
    [('markdown', '# Title'), ('code', '%pip install tpfx\\nimport tpfx')]
    """
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        kind = "markdown" if heading.strip() == "[markdown]" else "code"
        comment = r"^# ?" if kind == "markdown" else r"^# (?=%)"
        found.append((kind, re.sub(comment, "", body.strip(), flags=re.MULTILINE)))
    return found


def notebook_of(script: Path) -> dict[str, Any]:
    """The notebook of a script; cells that are as they were show what they showed."""
    path = script.with_suffix(".ipynb")
    before = json.loads(path.read_text())["cells"] if path.exists() else []
    shown: dict[str, list[dict[str, Any]]] = {}
    for cell in before:
        shown.setdefault("".join(cell["source"]), []).append(cell)
    made = []
    for number, (kind, text) in enumerate(cells(script.read_text())):
        cell = {"cell_type": kind, "id": f"cell-{number:02}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            old = shown[text].pop(0) if shown.get(text) else {}
            cell |= {"execution_count": old.get("execution_count"), "outputs": old.get("outputs", [])}
        made.append(cell)
    return {"cells": made, "metadata": PYTHON, "nbformat": 4, "nbformat_minor": 5}


def text_of(notebook: dict[str, Any]) -> str:
    """A notebook as it is written to its file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def run(notebook: dict[str, Any], folder: Path = HERE) -> dict[str, Any]:
    """The notebook with what its cells show now, but for what goes to stderr; nothing is installed."""
    import nbformat
    from nbclient import NotebookClient

    opened = nbformat.reads(text_of(notebook), as_version=4)
    for cell in opened.cells:
        cell.source = re.sub(r"^%pip .*", "", cell.source)
    resources, quiet = {"metadata": {"path": str(folder)}}, {**os.environ, "TPFX_PROGRESS": "0"}
    NotebookClient(opened, timeout=600, resources=resources).execute(env=quiet)
    done = json.loads(nbformat.writes(opened))["cells"]
    shown = [[one for one in cell.get("outputs", []) if one.get("name") != "stderr"] for cell in done]
    for cell, ran, outputs in zip(notebook["cells"], done, shown, strict=True):
        if cell["cell_type"] == "code":
            cell |= {"execution_count": ran["execution_count"], "outputs": outputs}
    return notebook


def main() -> None:
    """Write the notebooks that differ from their scripts, or with `--run` all, or those that are named."""
    named = set(sys.argv[1:]) - {"--run"}
    for script in scripts():
        if named and script.stem not in named:
            continue
        path, notebook = script.with_suffix(".ipynb"), notebook_of(script)
        text = text_of(run(notebook) if "--run" in sys.argv else notebook)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
