"""Make the table of what is fast that `--form auto` uses where nothing is measured.

    python scripts/form_table.py onnxruntime 1     # and 2; torch 1, torch 2, torch.nn 1, ...

Every run replaces the rows of one runtime and number of threads in dacconv/tuning/table.json.
Run it on a machine that does nothing else; it takes one to three minutes.
"""

from __future__ import annotations

import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dacconv.decompositions.forms import FORMS
from dacconv.graph.types import Conv, Geometry, Layer
from dacconv.support.machine import cpu
from dacconv.timing import timer as timing
from dacconv.timing.cache import Cache
from dacconv.timing.speeds import Target
from dacconv.timing.timer import Timer

TABLE = Path(__file__).parent.parent / "dacconv" / "tuning" / "table.json"
RANKS = (2, 3, 5)
SAME = {
    16: (32, 64),
    24: (28, 56),
    32: (16, 28, 32, 56, 112),
    40: (14, 28),
    64: (8, 16, 28, 32, 56, 112, 224),
    96: (28, 56),
    100: (14,),
    128: (8, 14, 28, 56, 112),
    192: (14, 28),
    256: (7, 14, 28, 56),
    384: (7, 14),
    512: (7, 14, 28),
}
"""Channels in and out, and the sides of the output; those that are no multiple of 16 run in
other kernels."""
OTHERS = (
    # in, out, side of the output, kernel, stride
    (1, 32, 28, 3, 1),
    (1, 64, 128, 3, 1),
    (3, 16, 32, 3, 1),
    (3, 32, 112, 3, 2),
    (3, 64, 224, 3, 1),
    (3, 64, 112, 7, 2),
    (16, 32, 16, 3, 2),
    (64, 128, 28, 3, 2),
    (128, 256, 14, 3, 2),
    (256, 512, 7, 3, 2),
    (64, 128, 112, 3, 1),
    (128, 256, 56, 3, 1),
    (256, 512, 28, 3, 1),
    (256, 64, 28, 3, 1),
    (64, 3, 128, 3, 1),
    (32, 32, 28, 5, 1),
    (64, 64, 56, 5, 1),
    (64, 64, 28, 7, 1),
)


def main() -> None:
    runtime, threads = sys.argv[1], int(sys.argv[2])
    shapes = [(c, c, side, 3, 1) for c, sides in SAME.items() for side in sides] + list(OTHERS)
    forms = [form for form in FORMS if runtime != "torch.nn" or form in ("multiplier", "repeat")]
    rows = []
    timing.ROUNDS = 5
    for channels, out, side, kernel, stride in shapes:
        layer, convs = case(channels, out, side, kernel, stride)
        timer = Timer(convs, Target(runtime, threads), Cache())
        for rank in RANKS:
            times = timer(layer, rank, forms)
            rows.append({
                "runtime": runtime, "threads": threads, "in": channels, "out": out,
                "output_size": [side, side], "kernel": [kernel] * 2, "stride": [stride] * 2,
                "rank": rank, "ms": round(1e3 * timer.seconds["layer"], 4),
                "times": {form: round(max(ratio, 1e-3), 3) for form, ratio in times.items()},
            })  # fmt: skip
        print(channels, out, side, kernel, stride, rows[-len(RANKS)]["times"], flush=True)
    write(runtime, threads, rows)


class One:
    """A single conv, whatever it is asked for."""

    def __init__(self, conv: Conv) -> None:
        self.made = conv

    def conv(self, node: str) -> Conv:
        return self.made


def case(channels: int, out: int, side: int, kernel: int, stride: int) -> tuple[Layer, One]:
    weight = np.zeros((out, channels, kernel, kernel), np.float32)
    pad = kernel // 2
    conv = Conv(weight, None, (stride, stride), ((pad, pad),) * 2, (1, 1))
    geometry = Geometry(
        channels, out, (kernel, kernel), (stride, stride), (1, 1), 1, False,
        (side * stride, side * stride), (side, side),
    )  # fmt: skip
    return Layer("layer", "conv", ("layer",), (geometry,)), One(conv)


def write(runtime: str, threads: int, rows: list[dict[str, Any]]) -> None:
    old = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"made": {}}
    kept = [r for r in old.get("rows", []) if (r["runtime"], r["threads"]) != (runtime, threads)]
    package = "onnxruntime" if runtime == "onnxruntime" else "torch"
    made = old["made"] | {
        f"{runtime}, {threads} threads": {
            "machine": cpu(),
            "version": f"{package} {version(package)}",
            "date": datetime.date.today().isoformat(),
        }
    }
    every = sorted(kept + rows, key=lambda r: (r["runtime"], r["threads"]))
    body = ",\n".join(json.dumps(row) for row in every)
    head = json.dumps({"made": dict(sorted(made.items()))}, indent=1)[:-2]
    TABLE.write_text(f'{head},\n "rows": [\n{body}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
