"""`tpfx doctor`: what is here, and what of it is known to go wrong: what a report of a fault needs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from ..console import environment
from ..errors import TpfxError
from ..formatting import bytes_text, counted, seconds_text
from ..native.build import cache_dir, compiler, executor_file
from ..version import TRIED, __version__
from .arguments import step
from .cache import contents
from .checks import Problem, installed, problems
from .measure_topology import measure

_PACKAGES = ("transformers", "accelerate", "safetensors", "numpy", "rich", "typer")

# A section is lines of a name and what is said of it.
Lines = Iterator[tuple[str, str]]


def doctor(
    links: Annotated[
        bool, typer.Option("--links/--no-links", help="Measure what devices need to talk to each other.")
    ] = True,
) -> None:
    """Say what is here, and what of it is known to go wrong, each with what helps.

    Ends with status 1 where something is broken. The text is what a report of a fault needs.

    \b
      tpfx doctor
      tpfx doctor --no-links > doctor.txt
    """
    found = list(problems())
    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "compiler": _compiler(),
        "caches": contents(),
        "environment": _environment(),
    }
    for title, lines in sections.items():
        _print(title, list(lines))
    if links:
        with step("measuring"):
            measured = list(_links(found))
        _print("links", measured)
    for problem in found:
        print(f"{'broken' if problem.breaks else 'problem'}: {problem.text}; {problem.remedy}")
    broken = sum(problem.breaks for problem in found)
    print(f"{counted(len(found), 'problem')}, {broken} of them broken" if found else "no problem is known")
    raise typer.Exit(1 if broken else 0)


def _print(title: str, lines: list[tuple[str, str]]) -> None:
    print(title)
    for name, said in lines:
        print(f"  {name:14} {said}")
    print()


def _versions() -> Lines:
    yield "tpfx", __version__
    yield "python", platform.python_version()
    yield "torch", f"{torch.__version__} (tried: {', '.join(TRIED)})"
    for package in _PACKAGES:
        yield package, installed(package) or "not installed"
    yield "system", platform.platform()


def _devices() -> Lines:
    cores, threads = counted(os.cpu_count() or 1, "core"), counted(torch.get_num_threads(), "thread")
    yield "cpu", f"{_cpu()}, {cores}, {threads}{_memory()}"
    yield "driver", _driver()
    for at in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(at)
        yield f"cuda:{at}", f"{card.name}, {bytes_text(card.total_memory)}, sm_{card.major}{card.minor}"


def _cpu() -> str:
    """What the processor is called, where the system says it."""
    try:
        with open("/proc/cpuinfo") as told:
            named = (line.partition(":")[2].strip() for line in told if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _memory() -> str:
    """Bytes of the machine, where the system says them."""
    if not hasattr(os, "sysconf"):
        return ""
    return f", {bytes_text(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}"


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none of NVIDIA"
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi fails: {error}"
    return f"NVIDIA {told[0]}, torch for CUDA {torch.version.cuda}" if told else "nvidia-smi finds no GPU"


def _compiler() -> Lines:
    found = compiler()
    told = "" if found is None else _first_line([*found.split(), "--version"])
    yield "C++", "none" if found is None else f"{found}: {told}"
    built = executor_file()
    yield "executor", "built" if built.exists() else "not built yet: the first compiled model builds it"


def _first_line(command: list[str]) -> str:
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"fails: {error}"
    return next(iter(told.splitlines()), "says nothing")


def _environment() -> Lines:
    for name in (*environment.VARIABLES, "CXX", "CUDA_VISIBLE_DEVICES", "TORCH_LOGS"):
        if name in os.environ:
            yield name, os.environ[name] or "(empty)"
    yield "cache folder", str(cache_dir())


def _links(found: list[Problem]) -> Lines:
    """What a message costs between all GPUs, or between two ranks on the CPU; adds to what is wrong."""
    count = torch.cuda.device_count()
    devices = [f"cuda:{at}" for at in range(count)] if count > 1 else ["cpu", "cpu"]
    if count > 1:
        yield "direct access", _peers(count)
    try:
        costs = measure(devices)
    except (TpfxError, RuntimeError) as error:
        remedy = "NCCL_DEBUG=INFO tpfx doctor says more" if count > 1 else "please report it"
        found.append(Problem(f"{' and '.join(devices)} cannot talk to each other: {error}", remedy, True))
        yield "all-reduce", "fails"
        return
    shortest, rate = seconds_text(costs.latency), f"{costs.bandwidth / 1e9:.3g} GB/s"
    yield "all-reduce", f"of {', '.join(devices)}: {rate} after {shortest}, measured"


def _peers(count: int) -> str:
    pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
    without = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if not without:
        return "every GPU to every other"
    return f"not from {', '.join(f'cuda:{one} to cuda:{other}' for one, other in without)}: through the host"
