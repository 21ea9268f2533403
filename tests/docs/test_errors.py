"""The index of errors has every class of error and every message of tpfx, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tpfx.errors
from tests.support.messages import HOLE, Message, messages

INDEX = Path(__file__).parents[2] / "docs/reference/errors.md"
# Texts that only hand on another one, which is in the index where it is made.
HANDED_ON = {"…", "…: …", "…: …: …", "…: …: no reason given", "tpfx: …", "# after … …"}
LETTERS = 10  # of a pattern's constant text, at least, so that none says everything


def entries(text: str) -> dict[str, list[str]]:
    """The patterns of each entry."""
    parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)[1:]
    return dict(
        zip(parts[::2], [re.findall(r"^- `(.*)`$", one, re.MULTILINE) for one in parts[1::2]], strict=True)
    )


def says(pattern: str, text: str) -> bool:
    """Whether the constant parts of a pattern come in a message, in their order."""
    return re.search(".*".join(map(re.escape, pattern.split(HOLE))), text, re.DOTALL) is not None


def missing(index: str, found: list[Message]) -> list[Message]:
    """The messages for which an index has no entry."""
    patterns = [pattern for each in entries(index).values() for pattern in each]
    return [
        one
        for one in found
        if " ".join(one.text.split()) not in HANDED_ON and not any(says(each, one.text) for each in patterns)
    ]


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return messages()


def test_every_message_has_an_entry(found: list[Message]) -> None:
    assert len(found) > 200
    assert missing(INDEX.read_text(), found) == []


def test_every_entry_is_of_a_message(found: list[Message]) -> None:
    stale = [
        (title, pattern)
        for title, patterns in entries(INDEX.read_text()).items()
        for pattern in patterns
        if not any(says(pattern, one.text) for one in found)
    ]
    assert stale == []


def test_every_entry_has_messages_a_cause_and_a_remedy() -> None:
    text = INDEX.read_text()
    bodies = re.split(r"^##+ (.*)\n", text, flags=re.MULTILINE)[1:]
    for title, body in zip(bodies[::2], bodies[1::2], strict=True):
        patterns = re.findall(r"^- `(.*)`$", body, re.MULTILINE)
        if title not in entries(text):
            continue  # the heading of a class
        cause, _, remedy = re.sub(r"^- `.*`$", "", body, flags=re.MULTILINE).partition("**Remedy:**")
        assert patterns and cause.strip().endswith(".") and remedy.strip().endswith("."), title
        for pattern in patterns:
            assert len(re.sub(r"\W", "", pattern)) >= LETTERS, pattern


def test_every_class_has_a_heading() -> None:
    headings = re.findall(r"^## (.*)$", INDEX.read_text(), re.MULTILINE)
    classes = {*tpfx.errors.__all__, "UntrueRuleError"} - {"RankAborted"}  # which callers never see
    assert classes <= set(headings)


def test_a_message_that_is_new_is_found(tmp_path: Path) -> None:
    """Whatever way a text is put together."""
    (tmp_path / "new.py").write_text(
        'REMEDY = "turn the third knob"\n'
        "def odd(what: str) -> str:\n"
        '    return f"{what} is odd"\n'
        "class KnobError(ValueError): ...\n"
        "def turn(knob):\n"
        "    if knob % 2:\n"
        '        raise KnobError(f"{odd(knob)}: {REMEDY}")\n'
        '    problem = "too loud" if knob > 10 else "too soft"\n'
        "    warnings.warn(problem)\n"
        '    _say("the knob is stuck")\n'
        "def _say(text):\n"
        '    log.warning("note: %s", text)\n'
    )
    texts = [one.text for one in missing(INDEX.read_text(), messages(tmp_path))]
    assert sorted(texts) == ["note: …", "too loud", "too soft", "… is odd: turn the third knob"]
