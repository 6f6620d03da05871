"""How long a single-layer sweep of ResNet-20 takes, beside one conversion of it.

    .venv/bin/python scripts/bench_sweep.py

19 layers x 8 ranks, outputs and agreement on 256 seeded inputs, no task metric; whole processes,
in ONNX Runtime. One conversion with verification is the unit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import DACCONV, ROOT, data_folder, progress, ratios, run, spread, table, title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    checkpoint = data_folder() / "cifar10" / "resnet20.th"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet20.onnx"
        export = ROOT / "scripts" / "export_onnx.py"
        subprocess.run(
            [sys.executable, str(export), "resnet20", str(checkpoint), str(model)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        made = Path(folder) / "made.onnx"
        convert = [DACCONV, "convert", model, "--rank", "2", "-o", made, "--force"]
        sweep = [DACCONV, "sweep", model, "--ranks", "1-8", "--samples", "256"]
        commands: dict[str, Sequence[object]] = {
            "`convert --rank 2`": convert,
            "`sweep`": sweep,
            "`sweep --jobs 1`": [*sweep, "--jobs", 1],
            "`sweep --jobs 2`": [*sweep, "--jobs", 2],
        }
        runs = {name: [] for name in commands}
        for turn in range(rounds):
            for name, command in commands.items():
                words = [str(word) for word in command]
                if name.startswith("`convert"):
                    run(words)  # warms the disk's cache
                runs[name].append(run(words))
                progress(f"{name}: {runs[name][-1].seconds:.1f} s ({turn + 1} of {rounds})")
    title("Sweeps of ResNet-20", "numpy", "onnxruntime", "joblib")
    first, single = runs["`convert --rank 2`"], runs["`sweep --jobs 1`"]
    rows = [
        (
            name,
            spread(one.seconds for one in found),
            spread(ratios(found, first, lambda one: one.seconds), 1),
            spread(ratios(single, found, lambda one: one.seconds)) if "jobs" in name else "",
        )
        for name, found in runs.items()
    ]
    print(table(("process", "seconds", "x a conversion", "x as fast as one job"), rows))


if __name__ == "__main__":
    main()
