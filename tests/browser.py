"""A real browser for tests: the one installed here, or one that is installed for the purpose."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WHY_NOT = "no Chromium here: install one, or name its path in LRP_BROWSER"


def installed() -> str | None:
    """Return the path of a Chromium: LRP_BROWSER, one on PATH, or playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return os.environ.get("LRP_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), own if Path(own).exists() else None
    )


def install() -> None:
    """Try to install one; a person's own machine is asked for nothing but playwright's folder in the home cache."""
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:  # a machine that is nobody's
        attempts = [["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", "chromium"], *attempts]
    for command in attempts:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, capture_output=True, timeout=300, env=environment, stdin=subprocess.DEVNULL)
        if installed():
            return


@cache
def found() -> str | None:
    """Return the path of a Chromium that was here or could be had; asked for once in a run of the tests."""
    if not installed():
        install()
    return installed()


@contextlib.contextmanager
def chromium(**options) -> Iterator:
    """Yield a headless browser (playwright's `Browser`); skip with a reason where none can be had."""
    api = pytest.importorskip("playwright.sync_api")
    path = found()
    if not path:
        pytest.skip(WHY_NOT)
    with api.sync_playwright() as playwright:
        # a container has no user namespace for Chromium's sandbox; the pages are this project's own
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], **options)
        try:
            yield browser
        finally:
            browser.close()
