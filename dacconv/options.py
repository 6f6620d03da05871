"""The options of the command line, each said once and shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dacconv.errors import UsageError


def _whole(text: str) -> int:
    """A number as the user typed it; whether it may be that small is told by who uses it."""
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a whole number above 0") from error


SOURCE, CHOICE, GATES, OUT = "Opening the model", "Choosing", "Verification and gates", "Output"

ModelPath = Annotated[
    Path,
    typer.Argument(help="ONNX, .pt2, .pt/.pth/.th, .safetensors.", show_default=False),
]
OriginalPath = Annotated[Path, typer.Argument(help="The model as it was.", show_default=False)]
ConvertedPath = Annotated[Path, typer.Argument(help="What became of it.", show_default=False)]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        help="Sizes that the model does not fix, as 1,3,224,224 or NAME:1,3,224,224; repeatable.",
        rich_help_panel=SOURCE,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORY",
        help="What builds the network of a state dict: PACKAGE.MODULE:FACTORY or FILE.py:FACTORY.",
        rich_help_panel=SOURCE,
    ),
]
ArchArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="NAME=VALUE for the factory; repeatable.", rich_help_panel=SOURCE
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="The checkpoint's entry with the state dict.", rich_help_panel=SOURCE
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Let a pickle run the code that it names. Only for files you trust.",
        rich_help_panel=SOURCE,
    ),
]
JsonOut = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the report as JSON; - is stdout.", rich_help_panel=OUT
    ),
]
MarkdownOut = Annotated[
    Path | None,
    typer.Option(
        "--markdown",
        metavar="FILE",
        help="Write the report as Markdown; - is stdout.",
        rich_help_panel=OUT,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Seeded inputs to run (default: 8).", rich_help_panel=GATES
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Their seed (default: 0).", rich_help_panel=GATES),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Threads of the runtime (default: its own choice).",
        rich_help_panel=GATES,
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        metavar="ERROR", help="Fail above this relative output error.", rich_help_panel=GATES
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Run original and converted side by side (default: yes).",
        rich_help_panel=GATES,
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Write even when a gate is missed.", rich_help_panel=GATES),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite.", rich_help_panel=OUT)]
MinAgreement = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Fail when fewer inputs keep their top class, as 99%.",
        rich_help_panel=GATES,
    ),
]


Rank = Annotated[
    int | None,
    typer.Option(
        help="The same rank for every layer.",
        parser=_whole,
        metavar="R",
        rich_help_panel=CHOICE,
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(
        metavar="RANKS", help="NAME=R,NAME=R; names may be globs.", rich_help_panel=CHOICE
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Smallest rank that keeps this share, as 0.95.",
        rich_help_panel=CHOICE,
    ),
]
EnergyOver = Annotated[
    str | None,
    typer.Option(
        metavar="mean|max",
        help="Over the mean of the channels, or over the max of all (default: mean).",
        rich_help_panel=CHOICE,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A plan in JSON, as --dry-run writes it.", rich_help_panel=CHOICE
    ),
]
FirstK = Annotated[
    int | None,
    typer.Option(
        help="Only the first K layers.", parser=_whole, metavar="K", rich_help_panel=CHOICE
    ),
]
LastK = Annotated[
    int | None,
    typer.Option(
        help="Only the last K layers.", parser=_whole, metavar="K", rich_help_panel=CHOICE
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Only layers that match this glob; repeatable.",
        rich_help_panel=CHOICE,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="No layer that matches this glob; repeatable.",
        rich_help_panel=CHOICE,
    ),
]
AllowCostlier = Annotated[
    bool,
    typer.Option(
        "--allow-costlier",
        help="Split even where the rank makes a layer cost more.",
        rich_help_panel=CHOICE,
    ),
]
Fuse = Annotated[
    bool | None,
    typer.Option(
        "--fuse/--no-fuse",
        help="Merge BatchNorm and branches without loss first (default: yes).",
        rich_help_panel=CHOICE,
    ),
]
KernelScale = Annotated[
    str | None,
    typer.Option(
        metavar="own|folded|unit",
        help="The scale that kernels are split in: as trained, as BatchNorm folded them, or "
        "every output channel at norm 1 (default: own).",
        rich_help_panel=CHOICE,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Settings in TOML; options given here win.", rich_help_panel=CHOICE
    ),
]
MinSaving = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE", help="Fail when fewer MACs are saved, as 40%.", rich_help_panel=GATES
    ),
]
ConvertOut = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The file to write (default: MODEL.dac.SUFFIX).",
        rich_help_panel=OUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print and write the plan only (-o names it).", rich_help_panel=OUT
    ),
]
FuseOut = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The file to write (default: MODEL.fused.SUFFIX).",
        rich_help_panel=OUT,
    ),
]
