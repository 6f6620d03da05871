"""Time every form of whole networks side by side: the tables of docs/benchmarks_forms.md.

    python scripts/bench_forms.py OUT.md MODEL... [--ranks 2,3] [--threads 1,2] [--shape 1,3,32,32]

A MODEL is a path, followed by `=NAME` where its table is to be called otherwise. What is timed:
the original, the forms multiplier, sum, repeat and concat, `auto` by the table, and `tuned`, which
is `auto --tune`; or those that `--forms` names.
Every model runs in a process of its own, in alternating rounds; see `dacconv bench`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TUNED = "tuned"
FORMS = ("multiplier", "sum", "repeat", "concat", "auto", TUNED)


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            path, _, title = name.partition("=")
            for rank in arguments.ranks.split(","):
                for threads in arguments.threads.split(","):
                    lines = table(Path(path), rank, threads, arguments, Path(folder))
                    head = f"### {title or Path(path).stem}, rank {rank}, threads {threads}"
                    with arguments.out.open("a", encoding="utf-8") as out:
                        out.write("\n".join([head, "", *lines, "", ""]))
                    print("\n".join([head, *lines, ""]), flush=True)


def table(
    model: Path, rank: str, threads: str, arguments: argparse.Namespace, folder: Path
) -> list[str]:
    shape = ["--input-shape", arguments.shape] if arguments.shape else []
    with_threads = [*shape, "--threads", threads]
    tune = [*with_threads, "--tune", "--timings", str(folder / "timings.json")]
    forms = arguments.forms.split(",")
    made = [
        converted(model, rank, "auto", folder, tune)
        if form == TUNED
        else converted(model, rank, form, folder, with_threads)
        for form in forms
    ]
    report = folder / "bench.json"
    subprocess.run(
        [sys.executable, "-m", "dacconv", "bench", str(model), *map(str, made), "--threads",
         threads, "--seconds", arguments.seconds, "--rounds", "40", "--json", str(report), *shape],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (case,) = json.loads(report.read_text(encoding="utf-8"))["cases"]
    names = ["original", *forms]
    lines = ["| form | ms | times as fast | 95 % interval |", "| --- | ---: | ---: | ---: |"]
    for name, timing in zip(names, case["timings"], strict=True):
        ratio = timing["ratio"]
        found = "1" if ratio is None else f"{ratio['median']:.2f}"
        between = "" if ratio is None else f"{ratio['low']:.2f} - {ratio['high']:.2f}"
        lines.append(f"| {name} | {timing['ms']['median']:.3g} | {found} | {between} |")
    return lines


def converted(model: Path, rank: str, form: str, folder: Path, more: list[str]) -> Path:
    target = folder / f"{model.stem}.{form}{'.tuned' if '--tune' in more else ''}{model.suffix}"
    subprocess.run(
        [sys.executable, "-m", "dacconv", "convert", str(model), "--rank", rank, "--form", form,
         "--allow-costlier", "--no-verify", "--force", "-o", str(target), *more],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return target


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ranks", default="2,3")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--seconds", default="40")
    parser.add_argument("--shape")
    return parser.parse_args()


if __name__ == "__main__":
    main()
