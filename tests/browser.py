"""Pages in a real browser, without a display."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """Headless Chromium; every call is a fresh one with a profile of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def dom(self, page: Path, *, width: int = 1280, then: str = "") -> tuple[str, list[str]]:
        """The page's DOM after its script, and what the console says.

        ``then`` is script to run afterwards, in a copy without the page's own policy against it.
        """
        if then:
            text = page.read_text("utf-8")
            start = text.index('<meta http-equiv="Content-Security-Policy"')
            text = text[:start] + text[text.index(">", start) + 1 :]
            page = self._folder / "then.html"
            page.write_text(text.replace("</body>", f"<script>{then}</script></body>"), "utf-8")
        done = self._run(page, width, "--dump-dom", "--enable-logging=stderr")
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def screenshot(self, page: Path, *, width: int, dark: bool) -> Path:
        """The top of the page as a PNG."""
        target = self._folder / f"{width}-{dark}.png"
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        self._run(page, width, scheme, f"--screenshot={target}")
        return target

    def _run(self, page: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                self._program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--user-data-dir={self._folder / 'profile'}",
                f"--window-size={width},900",
                *options,
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )


def find(folder: Path) -> Browser:
    """A browser, or a skipped test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no {' or '.join(NAMES)} to render pages in")
    return Browser(program, folder)
