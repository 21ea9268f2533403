"""Uses tpfx as those do who install it: into an environment that has nothing else, outside the repository.

    make package
    make package ARGS="--keep dist"     # and keep the sdist and the wheel, if all is well

The sdist and the wheel that is made of it have every file of the package. What the wheel declares is enough
to import it, and is little; with its extra `transformers` the README's example and the command line run, and
mypy sees its types. The sdist, and the directory as it is, can be installed as well.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A model of the kind and in the place that the README's example names, so that nothing is downloaded.
STAND_IN = """
import tokenizers, torch, transformers
words = {"<pad>": 0, "</s>": 1, "A": 2, "cat": 3, "sat": 4, "on": 5}
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(NAME)
sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 4}
config = transformers.OPTConfig(vocab_size=6, num_hidden_layers=1, eos_token_id=None, **sizes)
torch.manual_seed(0)
transformers.OPTForCausalLM(config).save_pretrained(NAME)
"""


def main() -> None:
    """Build, compare what is inside, install and use."""
    parser = argparse.ArgumentParser(description="Build tpfx, install it elsewhere, and use it.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the sdist and the wheel")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pip = environment(folder / "build")
        run(pip, "install", "--quiet", "build")
        run(folder / "build/bin/python", "-m", "build", "--outdir", folder / "dist", ROOT)
        (sdist,), (wheel,) = folder.glob("dist/*.tar.gz"), folder.glob("dist/*.whl")
        with tarfile.open(sdist) as packed, zipfile.ZipFile(wheel) as zipped:
            require_all(sdist, (name.partition("/")[2] for name in packed.getnames()))
            require_all(wheel, zipped.namelist())
        use(folder, wheel, sdist)
        if keep is not None:
            shutil.copytree(folder / "dist", keep, dirs_exist_ok=True)
    print("tpfx can be installed from the sdist, from the wheel, and from its directory")


def use(folder: Path, wheel: Path, sdist: Path) -> None:
    """Install in every way and run what is documented."""
    pip, tpfx = environment(folder / "env"), folder / "env/bin/tpfx"
    settings = ("--quiet", "--constraint", ROOT / "constraints.txt")
    run(pip, "install", *settings, "torch")  # first and alone: constraints.txt says why
    with_torch = packages(pip)
    run(pip, "install", *settings, wheel)
    brought = sorted(packages(pip) - with_torch - {"tpfx"})
    print(f"beside torch and what that needs, tpfx brings {len(brought)} packages: {', '.join(brought)}")
    run(tpfx, "--version", cwd=folder)
    run(pip, "install", *settings, f"{wheel}[transformers]")
    python, (name, example) = folder / "env/bin/python", readme_example()
    run(python, "-c", STAND_IN.replace("NAME", repr(name)), cwd=folder)
    whole = run(python, "-c", re.sub(r"model = tpfx\.compile\(.*", "", example), cwd=folder)
    if run(python, "-c", example, cwd=folder) != whole:
        raise SystemExit("the README's example does not print what the unsharded model does")
    run(tpfx, "plan", "llama", "-n", "2", cwd=folder)
    run(pip, "install", *settings, "mypy")
    shutil.copy(ROOT / "tests/support/user.py", folder)
    run(python, "-m", "mypy", "--strict", "user.py", cwd=folder)
    for source in (sdist, ROOT):
        run(pip, "install", "--quiet", "--no-deps", "--force-reinstall", source)
        run(tpfx, "--version", cwd=folder)


def environment(folder: Path) -> Path:
    """A new, empty environment; its pip."""
    venv.create(folder, with_pip=True)
    return folder / "bin/pip"


def packages(pip: Path) -> set[str]:
    """What an environment has."""
    return {line.partition("=")[0].lower() for line in run(pip, "list", "--format=freeze").split()}


def require_all(built: Path, names: Iterable[str]) -> None:
    """Whether what was built has every file of the package."""
    package = (path for path in (ROOT / "tpfx").rglob("*") if path.is_file() and path.suffix != ".pyc")
    missing = {str(path.relative_to(ROOT)) for path in package} - set(names)
    if missing:
        names_of = ", ".join(sorted(missing)[:5])
        raise SystemExit(f"{built.name} lacks {len(missing)} files of the package: {names_of}")


def readme_example() -> tuple[str, str]:
    """The model that the README's first example loads, and the example, on CPU devices."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = blocks[0].replace('["cuda:0", "cuda:1"]', '["cpu", "cpu"]')
    return re.findall(r'from_pretrained\("(.*?)"\)', example)[0], example


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; it must succeed, and sees nothing of the repository."""
    print("$", *(str(word).partition("\n")[0] for word in command), flush=True)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ = {**kept, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nfailed with status {done.returncode}: {command[0]}")
    return done.stdout


if __name__ == "__main__":
    main()
