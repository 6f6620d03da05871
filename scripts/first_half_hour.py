"""The README to the letter: install, demo, every command of the tour, and what it promises.

    python scripts/first_half_hour.py            # in a fresh clone and a fresh environment
    python scripts/first_half_hour.py --here     # with the dacconv of this environment

Prints the time of every command. Exits with 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMISED = ("fused.onnx", "small.onnx", "report.html", "near.onnx", "small.pth")
"""The files that the tour of the README writes."""
OWN = ("model.onnx", "zoo/", "run")
"""What a command of the tour needs that only the reader has."""


def commands() -> list[list[str]]:
    """The dacconv commands of the README's tour, as words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    tour = text[text.index("## Thirty seconds") : text.index("## Which layers")]
    lines = re.findall(r"^    (dacconv .*)$", tour, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def run(words: list[str], folder: Path) -> None:
    """Run a command there; its time, or its output and the end where it fails."""
    started = time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    print(f"{seconds:6.1f} s  {shlex.join(words)}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}exit code {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="install nothing")
    parser.add_argument("--index", default="", help="an extra index for pip, as for a CPU torch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "dacconv"
        run(["git", "clone", "--quiet", str(ROOT), str(folder)], ROOT)
        programs = Path(sys.executable).parent
        if not options.here:
            programs = folder / ".venv/bin"
            run([sys.executable, "-m", "venv", ".venv"], folder)
            index = ["--extra-index-url", options.index] if options.index else []
            run([str(programs / "pip"), "install", "--quiet", ".", *index], folder)
        run([str(programs / "python"), "scripts/demo.py"], folder)
        for words in commands():
            if not any(own in word for word in words[1:] for own in OWN):
                run([str(programs / words[0]), *words[1:]], folder)
        missing = [name for name in PROMISED if not (folder / name).is_file()]
        if missing:
            sys.exit(f"the README promises {', '.join(missing)}")


if __name__ == "__main__":
    main()
