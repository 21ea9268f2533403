"""The ranks' meeting in C++ under the thread sanitizer: no race in thousands of collectives, some aborted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tpfx.native import build

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_race_between_the_ranks(tmp_path: Path) -> None:
    """What torch does is not watched: it is not built for it; the meeting is a header, and is."""
    driver = tmp_path / "rounds"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{build.HERE}"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    for path in cpp_extension.library_paths():
        flags += [f"-L{path}", f"-Wl,-rpath,{path}"]
    command = [
        "c++",
        str(HERE / "meeting_rounds.cpp"),
        "-o",
        str(driver),
        *flags,
        "-lc10",
        "-ltorch_cpu",
        "-ltorch",
    ]
    subprocess.run(command, check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TSAN_OPTIONS": "exitcode=66"}
    done = subprocess.run([driver, "500"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[:4000]
