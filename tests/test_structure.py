"""The bounds that keep the package readable: parameters, lengths of files, sizes of folders."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "dacconv"
MOST_PARAMETERS, MOST_LINES, MOST_MODULES = 8, 450, 25


def sources() -> Iterator[tuple[str, str]]:
    """Every module of the package: its path from the package's folder, and its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    of = function.args
    named = len(of.posonlyargs) + len(of.args) + len(of.kwonlyargs)
    return named + (of.vararg is not None) + (of.kwarg is not None)


def test_no_function_has_many_parameters() -> None:
    counts = {
        f"{name}:{node.name}": parameters(node)
        for name, text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name for name, n in counts.items() if n > MOST_PARAMETERS}


def test_no_file_is_long() -> None:
    lines = {name: text.count("\n") for name, text in sources()}
    assert not {name for name, n in lines.items() if n > MOST_LINES}


def test_no_folder_is_large() -> None:
    modules = Counter(
        Path(name).parent.as_posix() for name, _ in sources() if Path(name).name != "__init__.py"
    )
    assert not {name for name, n in modules.items() if n > MOST_MODULES}
