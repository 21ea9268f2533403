"""What every test runs under: fixed seeds, one thread per worker, no network, a fresh Dynamo."""

import gc
import os
import shutil
import sys
from importlib.metadata import version

# Read when transformers and huggingface_hub are imported, so they are set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TPFX_PROGRESS"] = "0"  # nor shows progress, on a terminal that runs the tests
os.environ["TPFX_CACHE"] = "0"  # no test finds what another, or the user, has planned

import hypothesis
import pytest
import torch

from tests.support.launches import three_processes, two_processes  # noqa: F401  (fixtures)

# HYPOTHESIS_PROFILE=explore draws new examples on every run.
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("recent_models") and version("transformers") < "5.20":
        pytest.skip("this release of transformers has other code")
    if item.get_closest_marker("browser") and chromium() is None:
        pytest.skip("needs Chromium")


def chromium() -> str | None:
    """The browser that tests marked `browser` use."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@pytest.fixture
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


LAUNCHING = {"tests.support.launches", "tests.support.processes", "nbclient.client"}


def launches(item: pytest.Item) -> bool:
    """Whether a test's module launches processes, each of which imports torch and compiles."""
    names = vars(item.module).values() if isinstance(item, pytest.Function) else ()
    return any(getattr(value, "__module__", None) in LAUNCHING for value in names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left alone with it at the end. The first test that
    looks at a launch waits for all of it."""
    items.sort(key=lambda item: not launches(item))
    for item in items:
        if {"two_processes", "three_processes"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(900))


def pytest_collection_finish() -> None:
    """The collector looks no more at what was imported, a million objects, and looks less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def fresh_torch():
    """The same random numbers for every test, and nothing that an earlier test compiled."""
    torch.manual_seed(0)
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.convert_frame.input_codes.seen:
        dynamo.reset()
