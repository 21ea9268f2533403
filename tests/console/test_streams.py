"""Text for terminals of any width, and for encodings that lack characters."""

from __future__ import annotations

import io
import sys

import pytest

from tpfx.console import streams


def written(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    streams.take_all_characters()
    print(text, end="", flush=True)
    return raw.getvalue().decode(encoding)


def test_what_an_encoding_lacks_is_written_as_what_looks_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "┏━┳┓│ 12 µs, 2 × H100 → …\n€"
    assert written(text, "utf-8", monkeypatch) == text
    assert written(text, "ascii", monkeypatch) == "+=++| 12 us, 2 x H100 -> ...\n?"
    assert written(text, "latin-1", monkeypatch) == "+=++| 12 µs, 2 × H100 -> ...\n?"


def test_a_document_is_utf_8_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print(streams.document("2 × 3"), end="", flush=True)
    assert raw.getvalue().decode("utf-8") == "2 × 3"


def test_lines_are_folded_to_the_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"fits: {'a word ' * 20}\n\nend"
    assert streams.width() is None and streams.folded(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    first, second, *_, blank, end = streams.folded(text).split("\n")
    assert len(first) <= 40 and second.startswith("  a word") and (blank, end) == ("", "end")
