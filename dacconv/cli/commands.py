"""Commands of typer whose options come from their declarations in ``dacconv.settings``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dacconv import settings as kinds
from dacconv.errors import UsageError
from dacconv.settings import COMMANDS, Option, Options, Outputs, Settings, option_text
from dacconv.support.parsing import parse_layer_ranks


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in the order in which they were declared, heading by heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        rare = () if ctx.meta.get(HELP_ALL) else tuple(_rare(self.name or ""))
        for parameter in self.get_params(ctx):
            if parameter.name in rare:
                continue
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.param_type_name == "option":
                heading = getattr(parameter, "rich_help_panel", None) or kinds.OUTPUT
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        if rare:
            formatter.write_paragraph()
            formatter.write_text(f"{len(rare)} more options are listed by --help-all.")


HELP_ALL = "--help-all"


def _rare(name: str) -> Iterator[str]:
    """The names of a command's options that only --help-all lists."""
    for group in COMMANDS.get(name, ()):
        for each, declaration in group.declared(name):
            if declaration.rare:
                yield each.name


def _print_all(ctx: typer.Context, wanted: bool) -> None:
    """Print the help with every option, and end."""
    if wanted:
        ctx.meta[HELP_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


_HELP_ALL_PARAMETER = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            HELP_ALL,
            callback=_print_all,
            is_eager=True,
            help="Show every option and exit.",
            rich_help_panel=kinds.OUTPUT,
            show_default=False,
        ),
    ],
)


def command(app: typer.Typer, name: str, epilog: str | None = None) -> Callable[..., Any]:
    """Register a function as the command ``name``.

    Its parameters are the command's arguments, and one for each class in ``COMMANDS[name]``: an
    instance with the options as they were typed. Settings of a TOML file are under those typed.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        groups = {p.name: p.annotation for p in signature.parameters.values()
                  if p.annotation in COMMANDS[name]}  # fmt: skip

        def run(**values: Any) -> None:
            values.pop("help_all", None)
            given = {each: dict(_given(each, name, values)) for each in groups.values()}
            arguments = {key: values[key] for key in signature.parameters if key not in groups}
            config = given.get(Outputs, {}).get("config")
            built = {
                key: _settings(config, given[each]) if each is Settings else each(**given[each])
                for key, each in groups.items()
            }
            function(**arguments, **built)

        parameters = [p for p in signature.parameters.values() if p.name not in groups]
        for group in COMMANDS[name]:
            parameters += [_parameter(each, o, name) for each, o in group.declared(name)]
        if any(_rare(name)):
            parameters.append(_HELP_ALL_PARAMETER)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        app.command(name, cls=GroupedCommand, epilog=epilog)(run)
        return function

    return register


def _settings(config: Path | None, given: Mapping[str, Any]) -> Settings:
    from dacconv.jobs.settings_file import read_settings

    return read_settings(config, given)


def _given(group: type[Options], name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of a group that were typed: not None, an empty list or a flag that is off."""
    for each, declaration in group.declared(name):
        value = values[each.name]
        if value is None or value == [] or (value is False and declaration.kind == kinds.FLAG):
            continue
        if declaration.kind == kinds.RANKS:
            value = parse_layer_ranks(value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, Path) and group is Settings:
            value = str(value)
        yield each.name, value


def _parameter(each: Field[Any], declaration: Option, name: str) -> inspect.Parameter:
    """An option as a keyword-only parameter, with None as not given."""
    kind, text = declaration.kind, option_text(each.name)
    names = declaration.names or (text,)
    if kind == kinds.SWITCH:
        names = (f"{text}/{option_text(f'no_{each.name}')}",)
    facts: dict[str, Any] = {
        "help": declaration.words.get(name, declaration.help),
        "metavar": declaration.metavar,
        "rich_help_panel": declaration.heading,
        "show_default": False,
    }
    if kind == kinds.WHOLE:
        facts["parser"] = _whole_number(text)
    elif kind in (kinds.COUNT, kinds.NATURAL):
        facts["min"] = 1 if kind == kinds.COUNT else 0
    annotation = Annotated[_TYPES[kind], typer.Option(*names, **facts)]  # type: ignore[valid-type]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(each.name, keyword, default=None, annotation=annotation)


def _whole_number(option: str) -> Callable[[Any], int]:
    """A number as the user typed it; the command checks its range."""

    def parse(value: Any) -> int:
        try:
            return int(value)
        except ValueError as error:
            raise UsageError(f"'{value}' is not a whole number above 0", where=option) from error

    return parse


_TYPES: dict[str, Any] = {
    kinds.WHOLE: int | None,
    kinds.COUNT: int | None,
    kinds.NATURAL: int | None,
    kinds.NUMBER: float | None,
    kinds.TEXT: str | None,
    kinds.SHARE: str | None,
    kinds.NUMBERS: str | None,
    kinds.RANKS: str | None,
    kinds.TEXTS: list[str] | None,
    kinds.PATH: Path | None,
    kinds.SWITCH: bool | None,
    kinds.FLAG: bool,
}
