"""What is known to go wrong on a machine: each a check of its own, that says what helps.

for problem in problems(): print(problem.text, problem.remedy, problem.breaks)
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..console import environment
from ..console.files import require_writable
from ..formatting import bytes_text
from ..native.build import NoExecutor, cache_dir, compiler, executor_file, load
from ..version import AT_LEAST, BELOW, TRIED, is_tried

TRANSFORMERS = (5, 17)  # as in pyproject.toml
ROOM = 1 << 30  # bytes: what plans, executors and Inductor's code take, and some more


@dataclass(frozen=True)
class Problem:
    """Something that is known to go wrong.

    Attributes:
        text: what is so.
        remedy: what helps.
        breaks: whether tpfx does not work so, or only slower or in part.
    """

    text: str
    remedy: str
    breaks: bool = False


def installed(package: str) -> str | None:
    """The version of a package; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Problem | None:
    if is_tried(torch.__version__):
        return None
    low, high = (".".join(map(str, bound)) for bound in (AT_LEAST, BELOW))
    return Problem(
        f"torch {torch.__version__} has not been tried with this tpfx; tried were {', '.join(TRIED)}",
        f"pip install 'torch>={low},<{high}', or a newer tpfx",
    )


def _transformers() -> Problem | None:
    found = installed("transformers")
    numbers = re.match(r"(\d+)\.(\d+)", found or "")
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= TRANSFORMERS:
        return None
    return Problem(
        f"transformers {found} is older than what has been tried", "pip install 'tpfx[transformers]'"
    )


def _switched_off() -> Problem | None:
    names = [name for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE") if os.environ.get(name) == "1"]
    if not names:
        return None
    return Problem(
        f"{names[0]}=1: nothing is captured, so that every model runs whole", f"unset {names[0]}", breaks=True
    )


def _variables() -> Problem | None:
    unknown = environment.unknown(os.environ)
    if not unknown:
        return None
    known = ", ".join(environment.VARIABLES)
    return Problem(f"{', '.join(unknown)} is set, and is nothing that tpfx reads", f"it reads {known}")


def _cuda() -> Problem | None:
    if torch.cuda.is_available() or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return None
    if not torch.backends.cuda.is_built():
        return Problem(
            f"there is a GPU, but torch {torch.__version__} was built without CUDA",
            "install a build of torch for CUDA, as https://pytorch.org says",
        )
    return Problem(
        "there is a GPU, but torch cannot use it: the driver is missing, too old, or not allowed to be used",
        "nvidia-smi says more; CUDA_VISIBLE_DEVICES must not be empty",
        breaks=True,
    )


def _gpus() -> Problem | None:
    names = {torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())}
    if len(names) < 2:
        return None
    return Problem(
        f"the GPUs are of several kinds: {', '.join(sorted(names))}; all wait for the slowest",
        "name those of one kind: tpfx.compile(model, ['cuda:0', …])",
    )


def _executor() -> Problem | None:
    if compiler() is None and not executor_file().exists():
        return Problem(
            "there is no C++ compiler, so that graphs run op by op from Python, slower",
            "install g++ or clang++, or name one by CXX",
        )
    if not executor_file().exists():
        return None
    try:
        load()
    except NoExecutor as error:
        remedy = "tpfx cache --clear has it built anew"
        return Problem(f"the executor cannot be loaded: {error}", remedy, breaks=True)
    return None


def _cache() -> Problem | None:
    elsewhere = "make room there, or name another folder by TPFX_CACHE_DIR"
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        require_writable(cache_dir() / "doctor")
    except OSError as error:
        return Problem(f"nothing can be kept in {cache_dir()}: {error}", elsewhere)
    free = shutil.disk_usage(cache_dir()).free
    return Problem(f"{bytes_text(free)} are free in {cache_dir()}", elsewhere) if free < ROOM else None


CHECKS: tuple[Callable[[], Problem | None], ...] = (
    _torch,
    _transformers,
    _switched_off,
    _variables,
    _cuda,
    _gpus,
    _executor,
    _cache,
)


def problems() -> Iterator[Problem]:
    """What is known to go wrong here."""
    yield from filter(None, (check() for check in CHECKS))
