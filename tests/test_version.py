"""Which releases of torch have been tried."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from tests.support.fresh_python import run
from tpfx import version as tried


@pytest.mark.parametrize("release", ["2.15.0", "2.15.0a0+git12", "3.0.1", "2.10.2"])
def test_a_release_that_nobody_has_tried_is_named_with_what_was_and_a_remedy(release: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(f"torch {release} has not been tried")) as caught:
        tried.warn_of_untried(release)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert all(one in text for one in tried.TRIED) and "install 'torch>=2.11,<2.15'" in text


@pytest.mark.parametrize("release", [None, *tried.TRIED, "2.13.0+cpu", "2.14.1+cu130"])
def test_those_that_were_tried_are_welcome(release: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried.warn_of_untried(release)


def test_the_package_is_installed_with_these_releases_alone() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    low, high = (".".join(map(str, bound)) for bound in (tried.AT_LEAST, tried.BELOW))
    assert f'"torch>={low},<{high}"' in text


def test_importing_tpfx_warns_once() -> None:
    """Under a torch that calls itself another release."""
    code = """
import warnings, torch
torch.__version__ = "2.99.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tpfx
    tpfx.Topology()
print([str(one.message)[:36] for one in caught if "tried" in str(one.message)])
"""
    assert run(code).strip() == "['torch 2.99.0 has not been tried with']"
