"""Every command and option that the documentation names is there, and the README's tour runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import dacconv
from dacconv.cli.app import click_app as app
from scripts import first_half_hour, site_pages
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"--every"}
"""Options of other programs that the documentation names on their own."""


def commands(page: Path) -> Iterator[list[str]]:
    """The dacconv commands in code blocks and code spans, as words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^(?: {4}|\t| *- )(?:\$ )?(dacconv .*)$", text, re.MULTILINE)
    spans = re.findall(r"`(dacconv [a-z][^`]*)`", text)
    for line in (*blocks, *spans):
        words = shlex.split(line, comments=True)
        if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            yield words


def known(name: str) -> set[str]:
    command = app.commands[name]
    options = (p for p in command.params if p.param_type_name == "option")
    return {"-h", "--help"} | {n for p in options for n in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_are_there(page: Path) -> None:
    for words in commands(page):
        assert words[1] in app.commands, " ".join(words)
        for word in words[2:]:
            if re.match(r"--?[a-zA-Z]", word):
                assert word.partition("=")[0] in known(words[1]), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_on_their_own_are_there(page: Path) -> None:
    everything = {option for name in app.commands for option in known(name)} | {"--version"}
    named = re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    assert set(named) - everything <= ELSEWHERE


def test_there_is_something_to_check() -> None:
    assert {words[1] for page in PAGES for words in commands(page)} >= {"convert", "check", "run"}


def test_modules_that_are_named_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)\b", page.read_text(encoding="utf-8")):
            assert any((top / name).is_file() for top in (ROOT, ROOT / "dacconv")), (page, name)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_tour_of_the_readme_runs(run, work) -> None:
    (work / "tests").symlink_to(ROOT / "tests")
    (work / "model.onnx").write_bytes((work / "net.onnx").read_bytes())
    (work / "zoo").mkdir()
    (work / "zoo/a.onnx").write_bytes((work / "net.onnx").read_bytes())
    (work / "dacconv.toml").write_text("[jobs.one]\nmodel = 'net.onnx'\nrank = 2\n")
    tour = first_half_hour.commands()
    assert len(tour) >= 8
    slow = ("bench", "sweep")  # they have tests of their own
    for words in tour:
        searched = not {"--macs", "--rank", "fuse"} & set(words) and words[1] == "convert"
        if words[1] in slow or searched:
            continue
        words = ["0.9" if word == "0.5" else word for word in words]
        args = [
            name
            for word in words[1:]
            for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
        ]
        if "synthetic" in args:
            args[args.index("synthetic")] = "none"
        elif "--macs" in args:
            args += ["--calibrate", "none"]
        assert run(*args).code == 0, words


def test_the_page_of_options_is_what_the_declarations_say() -> None:
    page = site_pages.OPTIONS.read_text(encoding="utf-8")
    assert page == site_pages.options_page(), "run `python scripts/site_pages.py`"


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: dacconv\.(\w+)$", page, re.MULTILINE))
    assert listed == set(dacconv.__all__) - {"__version__"}


def test_the_examples_of_the_reference_run(monkeypatch, tmp_path) -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(first, names)
    assert (tmp_path / "fashion.dac.onnx").is_file()
    exec(second, names)
