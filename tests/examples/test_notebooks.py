"""The notebooks are those of the scripts, and run as those do."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import nbformat
import pytest

from examples.notebooks import cells, notebook_of, run, scripts, text_of
from tests.support.examples import require

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = [path.stem for path in scripts()]


def test_cells_of_a_script() -> None:
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n"
    code = "# %%\n# %pip install tpfx\nimport tpfx  # it\n\n\n# %%\n# why\nf()\n"
    assert cells(text + code) == [
        ("markdown", "# Title\n\nText."),
        ("code", "%pip install tpfx\nimport tpfx  # it"),
        ("code", "# why\nf()"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_that_of_its_script(name: str) -> None:
    script = EXAMPLES / f"{name}.py"
    assert script.with_suffix(".ipynb").read_text() == text_of(notebook_of(script)), "run `make notebooks`"
    nbformat.validate(nbformat.read(script.with_suffix(".ipynb"), as_version=4))


def test_a_cell_that_is_changed_shows_nothing_old_and_alike_ones_what_they_showed(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text("# %%\nf()\n\n# %%\nx = 1\n\n# %%\nf()\n")
    made = notebook_of(script)
    for number, cell in enumerate(made["cells"]):
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [f"{number}\n"]}]
    script.with_suffix(".ipynb").write_text(text_of(made))
    script.write_text("# %%\nf()\n\n# %%\nx = 2\n\n# %%\nf()\n")
    shown = [[output["text"] for output in cell["outputs"]] for cell in notebook_of(script)["cells"]]
    assert shown == [[["0\n"]], [], [["2\n"]]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's client
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps than it has for readers."""
    if name == "diffusion" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("needs diffusers, of the extra tpfx[examples]")
    for path in (*EXAMPLES.glob("*.tsv"), *EXAMPLES.glob("*.txt")):
        shutil.copy(path, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = json.loads(text_of(notebook_of(EXAMPLES / f"{name}.py")).replace("STEPS = 500", "STEPS = 15"))
    shown = [output for cell in run(notebook, tmp_path)["cells"] for output in cell.get("outputs", [])]
    told = "".join("".join(output.get("text", [])) for output in shown)
    assert told and "\x1b[" not in told
    require(told)
    assert name != "finetune" or any("image/png" in output.get("data", {}) for output in shown)


def test_readers_see_the_plot_of_the_losses() -> None:
    notebook = nbformat.read(EXAMPLES / "finetune.ipynb", as_version=4)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
