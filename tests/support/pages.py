"""Code blocks of the documentation, and how they are run.

    for block in blocks(page): ...          # a fence, and the `text` fence right after it: what it prints
    Program(folder).run(block)

What is written for a reader's machine is run on any, by these rules and no others:

- `cuda` devices are CPU devices: "cuda:0" is "cpu", and what all GPUs are is "cpu", "cpu".
- a model's name, in `from_pretrained` or as a folder, is a tiny model with random weights, of the same kind,
  that lies under this name in the working directory.
- the model type of a command, such as `llama`, has small sizes (`SMALL`), and what it prints is not compared;
  with `Program(…, small=False)` it has its own sizes, and is.
- a block with a title is a file of this name; it is written, and not run.
- of `make`, `pip` and `python -m` it is seen that there is such a target, extra or module; `tpfx` commands
  are run in this process, and `torchrun` as it is.
- a block of no language that begins with one of these commands is one of them.
- a block whose first line is `# not run here: …` says why; the test has a list of these.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import linecache
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tpfx.cli import main

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# not run here: "
SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}
SMALL = {"llama": SIZES}


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        where: the page and the line.
        language: "python", "sh" or another.
        title: of a block that is a file, its name.
        text: the code.
        output: what it prints, where the page shows it; `…` is anything.
    """

    where: str
    language: str
    title: str | None
    text: str
    output: str | None

    @property
    def not_run(self) -> str | None:
        """Why it is not run."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else None

    @property
    def is_of_a_large_model(self) -> bool:
        """Whether it is a command on a model type, which has large sizes if nothing is said."""
        return self.language == "sh" and bool(set(self.text.split()) & set(SMALL))


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page; those of other languages are text."""
    text = page.read_text()
    found, fences = [], list(FENCE.finditer(text))
    for fence, after in itertools.zip_longest(fences, fences[1:]):
        indent, language, info, code = fence.groups()
        if not language and code.split()[0] in COMMANDS:
            language = "sh"
        title = re.search(r'title="([^"]+)"', info)
        if language not in ("python", "sh") and title is None:
            continue
        shown = after is not None and after[2] == "text" and not text[fence.end() : after.start()].strip()
        output = _dedented(after[4], indent) if after is not None and shown else None
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}"
        found.append(Block(where, language, title and title[1], _dedented(code, indent), output))
    return found


def _dedented(text: str, indent: str) -> str:
    return re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


class Program:
    """Blocks that are run one after the other in the working directory, with one namespace."""

    def __init__(self, given: dict[str, Any], small: bool = True) -> None:
        self.names: dict[str, Any] = {"__name__": "page", **given}
        self.small = small

    def run(self, block: Block) -> None:
        """Run a block, and compare what it prints with what the page shows."""
        if block.not_run:
            return
        if block.title is not None:
            Path(block.title).write_text(on_cpu(block.text))
            return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self._python(block) if block.language == "python" else self._shell(block)
        comparable = not (self.small and block.is_of_a_large_model)
        if block.output is not None and comparable and not _fits(block.output, printed.getvalue()):
            assert os.environ.get("TPFX_UPDATE_GOLDENS"), f"{block.where} prints\n{printed.getvalue()}"
            _update(block, _stripped(printed.getvalue()))

    def _python(self, block: Block) -> None:
        code = on_cpu(block.text)
        linecache.cache[block.where] = (len(code), None, code.splitlines(keepends=True), block.where)
        exec(compile(code, block.where, "exec"), self.names)

    def _shell(self, block: Block) -> None:
        for line in re.sub(r"\\\n", " ", block.text).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                COMMANDS[words[0]](words[:2] + (_sizes(words) if self.small else []) + words[2:])


def on_cpu(code: str) -> str:
    """The same for CPU devices."""
    return re.sub(r'"cuda(:\d+)?"', '"cpu"', code)


def _fits(shown: str, printed: str) -> bool:
    """Whether a page shows what is printed, but for where lines are broken, and how wide columns are."""
    pattern = ".*?".join(map(re.escape, _narrow(shown).split("…")))
    return re.fullmatch(pattern, _narrow(printed)) is not None


def _narrow(text: str) -> str:
    """A text with single spaces, and borders of tables with single lines."""
    return re.sub("([━─])\\1+", "\\1", " ".join(text.split()))


def _update(block: Block, printed: str) -> None:
    """Have the page show what is printed; such blocks are not indented."""
    page = ROOT / block.where.partition(":")[0]
    before, code, after = page.read_text().partition(f"{block.text}```\n\n```text\n")
    assert code, f"{block.where} is there twice, or not any more"
    page.write_text(before + code + printed + "\n" + after[len(block.output or "") :])


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


# Commands.


def _sizes(words: list[str]) -> list[str]:
    """Options that make a model type of a command a small model."""
    found = (SMALL[word].items() for word in words if word in SMALL)
    return [word for sizes in found for key, value in sizes for word in ("--set", f"{key}={value}")]


def _tpfx(words: list[str]) -> None:
    args, target = words[1:], None
    if ">" in args:
        args, target = args[: args.index(">")], args[args.index(">") + 1]
    if args[:2] == ["topology", "measure"]:  # all GPUs
        args += ["cpu", "cpu"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["tpfx", *args])
        with (
            open(target or os.devnull, "w") as file,
            contextlib.redirect_stdout(file if target else sys.stdout),
        ):
            main()
    assert ended.value.code in (0, None) or (args[0] == "diff" and ended.value.code == 1), words


def _make(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[1] in targets, words


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"\w+", ",".join(re.findall(r"\[(.*?)\]", " ".join(words)))))
    assert words[1] == "install" and extras <= set(project["optional-dependencies"]), words


def _python(words: list[str]) -> None:
    assert words[1] == "-m" and list(ROOT.glob(words[2].replace(".", "/") + "*")), words


def _torchrun(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]],
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


COMMANDS = {"tpfx": _tpfx, "make": _make, "pip": _pip, "python": _python, "torchrun": _torchrun}
