"""Text for whatever takes it: terminals of any width, pipes, files, encodings without µ.

take_all_characters()        # from now on, what an encoding lacks is written as what looks like it
print(folded(text))          # to the width of the terminal; as it is where there is none
"""

from __future__ import annotations

import codecs
import shutil
import sys
import textwrap

# Of boxes, and of what tpfx writes beside letters.
_LIKE = {
    **dict.fromkeys("━═", "="),
    **dict.fromkeys("─╌", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┏┳┓┡╇┩├┼┤└┴┘┌┬┐┣╋┫┗┻┛╭╮╰╯", "+"),
    **{"µ": "u", "×": "x", "–": "-", "−": "-", "→": "->", "…": "...", "·": "*", "≤": "<=", "≥": ">="},
    **{"’": "'", "“": '"', "”": '"', "²": "2"},
}
_HANDLER = "tpfx.like"


def plain(error: UnicodeError) -> tuple[str, int]:
    """What is written in the place of characters that an encoding lacks; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_LIKE.get(each, "?") for each in error.object[error.start : error.end]), error.end


def take_all_characters() -> None:
    """Have standard output and error write, in the place of what their encodings lack, what looks like it."""
    codecs.register_error(_HANDLER, plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def document(text: str) -> str:
    """A text that a program reads, which standard output then writes as UTF-8, whatever its encoding."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    return text


def width() -> int | None:
    """Columns of the terminal; None where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def folded(text: str) -> str:
    """Lines no longer than the terminal is wide, what goes on indented; as they are where there is none."""
    columns = width()
    if columns is None:
        return text
    lines = (
        textwrap.wrap(line, max(columns, 20), subsequent_indent="  ") or [""] for line in text.split("\n")
    )
    return "\n".join(line for wrapped in lines for line in wrapped)
