"""What is published: one version, files that are there, forms and workflows that ask for what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import tpfx
from tests.support.fresh_python import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[0-9]*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
needs_github = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="the sdist has no .github")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert tpfx.__version__ == version
    assert read(ROOT / "CITATION.cff")["version"] == version
    released = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:2] == ["Unreleased", version.partition(".dev")[0]]


def test_the_sdist_takes_what_is_there() -> None:
    taken = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"])
    assert [name for name in taken if not (ROOT / name).exists()] == []
    documents = {path.name for path in ROOT.glob("[!.]*") if path.suffix in (".cff", ".md", ".txt", ".yml")}
    assert documents - {"README.md"} <= taken  # which is in it by itself


def test_the_wheel_needs_torch_and_at_most_eight_others() -> None:
    needed = [re.split(r"[<>=\[ ]", one)[0] for one in PROJECT["project"]["dependencies"]]
    assert needed[0] == "torch" and len(needed) <= 9


@needs_github
def test_workflows_run_what_there_is() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
        commands = "\n".join(step.get("run", "") for step in steps)
        assert set(re.findall(r"\bmake ([a-z]+)", commands)) <= targets, path.name
        for file in re.findall(r"(?<![\w/])\.ci/\w+(?:\.py)?", commands):
            assert (ROOT / file).exists(), (path.name, file)
        assert all(("uses" in step) != ("run" in step) for step in steps), path.name


@needs_github
def test_only_the_job_that_publishes_may_ask_for_a_token() -> None:
    for path in WORKFLOWS:
        workflow = read(path)
        assert workflow["permissions"] in ({}, {"contents": "read"}), path.name
        for name, job in workflow["jobs"].items():
            asks = "id-token" in job.get("permissions", {})
            assert asks == ("environment" in job), (path.name, name)


@needs_github
@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_the_machine_and_the_report(path: Path) -> None:
    form = read(path)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"] and form["description"]
    assert {"doctor", "report"} <= {field["id"] for field in fields}
    assert len({field["id"] for field in fields}) == len(fields)
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown"}
    text = path.read_text()
    assert "`tpfx doctor`" in text and "`print(tpfx.report(model))`" in text
