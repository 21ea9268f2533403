"""The version of tpfx, and the releases of torch that it has been tried with: bounds as in pyproject.toml."""

from __future__ import annotations

import re
import warnings

import torch

__version__ = "0.1.0"

# The default tests were run with each, beside transformers 5.17.0, 5.20.2, 5.23.0 and 5.24.0.
TRIED = ("2.11.0", "2.12.1", "2.13.0", "2.14.1")
AT_LEAST, BELOW = (2, 11), (2, 15)


def is_tried(version: str) -> bool:
    """Whether a release of torch is one of those that are supported, or says no numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is None or AT_LEAST <= (int(numbers[1]), int(numbers[2])) < BELOW


def warn_of_untried(version: str | None = None) -> None:
    """Warn where torch is newer or older than what has been tried; `version` is torch's own by default."""
    version = version or str(torch.__version__)
    if is_tried(version):
        return
    low, high = (".".join(map(str, bound)) for bound in (AT_LEAST, BELOW))
    warnings.warn(
        f"torch {version} has not been tried with this tpfx, which uses private names of torch; tried were "
        f"{', '.join(TRIED)}. If something fails, install 'torch>={low},<{high}', or a newer tpfx",
        stacklevel=2,
    )
