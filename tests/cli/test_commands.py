"""The command line as it is derived from the declared options: help, nearest names, start-up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dacconv.settings import COMMANDS, Option, option_text
from scripts.site_pages import options_table

DECLARED = [
    (name, field.name, declaration)
    for name, groups in COMMANDS.items()
    for group in groups
    for field, declaration in group.declared(name)
]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_table_list_every_declared_option(run, monkeypatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rare = [declaration for command, _, declaration in DECLARED
            if command == name and declaration.rare]  # fmt: skip
    brief = run(name, "--help")
    done = run(name, "--help-all") if rare else brief
    assert (brief.code, done.code) == (0, 0)
    assert (f"{len(rare)} more options are listed by --help-all." in brief.out) == bool(rare)
    assert not [d for d in rare if d.help in " ".join(brief.out.split())]
    table = options_table(name)
    for command, field, declaration in DECLARED:
        if command == name:
            assert f"{declaration.heading}:" in done.out
            option = declaration.names[-1] if declaration.names else option_text(field)
            assert option in done.out
            assert option in table


@pytest.mark.parametrize("entry", DECLARED, ids=lambda entry: f"{entry[0]} {entry[1]}")
def test_every_option_has_a_heading_and_a_sentence(entry: tuple[str, str, Option]) -> None:
    declaration = entry[2]
    assert declaration.heading
    assert declaration.help.endswith(".")


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (("convrt", "net.onnx"), "Did you mean 'convert'"),
        (("convert", "net.onnx", "--rnak", 2), "--rank"),
        (("sweep", "net.onnx", "--buget", 0.5), "--budgets"),
        (("bench", "net.onnx", "net.onnx", "--round", 9), "--rounds"),
    ],
)
def test_a_mistyped_name_gives_the_nearest(run, args, nearest: str) -> None:
    done = run(*args)
    assert (done.code, done.out, done.new) == (2, "", [])
    assert nearest in done.err


def test_completion_can_be_installed(run) -> None:
    out = run("--help").out
    assert "--install-completion" in out
    assert "--show-completion" in out


@pytest.mark.parametrize("args", [["--help"], ["convert", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['dacconv', *{args}]\n"
        "from dacconv.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'scipy', 'rich', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
