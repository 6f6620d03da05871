"""Measure convs and chains of convs, and fit the constants of dacconv/timing/prices.py to them.

    python scripts/fit_prices.py measure TIMES.jsonl onnxruntime 1     # also 2; torch; torch.nn
    python scripts/fit_prices.py fit TIMES.jsonl onnxruntime           # prints Rates and errors

Measuring appends a row for each case to the file; it takes two to five minutes for each runtime
and number of threads, on a machine that has nothing else to do. The fit uses all rows of the
runtime. The errors are those of layers that were left out of the fit, a tenth of them at a time.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from dacconv.decompositions import costs
from dacconv.decompositions.costs import Work
from dacconv.decompositions.forms import EVERYTHING, FORMS, Reordering, lower
from dacconv.graph.types import Branches, Choice, Conv, Geometry
from dacconv.timing import prices, timer
from dacconv.timing.prices import Prices, Rates
from dacconv.timing.speeds import Target

RANKS = (2, 3, 5)
SHARES = (0.3, 0.6)
"""The shares of a layer's multiply-adds at which the other methods are measured."""
FOLDS = 10
TORCH_NN_ALONE = ("copied", "operator")
"""The constants in which torch.nn differs from torch: its layers repeat channels in another way."""
SPLIT = (  # dense convs: in, out, size of the output, then kernel (3) and stride (1)
    (16, 16, 32), (16, 16, 64), (24, 24, 28), (32, 32, 28), (32, 32, 112), (40, 40, 14),
    (64, 64, 8), (64, 64, 28), (64, 64, 56), (64, 64, 224), (96, 96, 28), (100, 100, 14),
    (128, 128, 14), (128, 128, 56), (192, 192, 14), (256, 256, 7), (256, 256, 28), (384, 384, 7),
    (512, 512, 7), (512, 512, 14), (1, 32, 28), (3, 16, 32), (3, 32, 112, 3, 2), (3, 64, 224),
    (3, 64, 112, 7, 2), (16, 32, 16, 3, 2), (64, 128, 28, 3, 2), (256, 512, 7, 3, 2),
    (128, 256, 56), (256, 64, 28), (64, 3, 128), (32, 32, 28, 5), (64, 64, 28, 7), (48, 48, 56),
    (80, 160, 20),
)  # fmt: skip
SINGLE: dict[str, tuple[tuple[Any, ...], ...]] = {  # in, out, size, kernel, stride, groups
    "pointwise": (
        (16, 16, 32, 1), (64, 64, 56, 1), (64, 256, 56, 1), (128, 128, 28, 1), (256, 64, 56, 1),
        (256, 256, 14, 1), (512, 512, 14, 1), (512, 512, 7, 1), (1024, 256, 14, 1),
        (2048, 512, 7, 1), (24, 144, 56, 1), (144, 24, 56, 1), (32, 16, 112, 1), (64, 64, 224, 1),
        (64, 64, 112, 1), (192, 64, 56, 1), (384, 128, 28, 1), (1280, 256, 14, 1),
        (100, 100, 28, 1), (256, 512, 14, 1, 2), (32, 32, 16, 1),
    ),
    "depthwise": tuple(
        (channels, channels, size, kernel, stride, channels)
        for channels, size, kernel, stride in (
            (16, 32, 3, 1), (32, 112, 3, 1), (64, 28, 3, 1), (64, 56, 3, 1), (64, 224, 3, 1),
            (96, 56, 3, 2), (144, 28, 3, 1), (192, 14, 5, 1), (256, 14, 3, 1), (512, 7, 3, 1),
            (512, 28, 3, 1), (24, 56, 3, 1), (100, 14, 3, 1), (240, 14, 5, 1), (64, 112, 7, 1),
            (32, 56, 3, 1), (128, 56, 3, 1),
        )
    ),
    "multiplier": tuple(
        (channels, channels * times, size, 3, 1, channels)
        for channels, times, size in (
            (16, 2, 32), (64, 2, 56), (64, 3, 28), (64, 5, 14), (256, 3, 14), (32, 2, 112),
            (128, 2, 28), (3, 2, 224), (24, 2, 28), (512, 2, 7),
        )
    ),
    "grouped": (
        (64, 64, 56, 3, 1, 4), (128, 128, 28, 3, 1, 32), (256, 256, 14, 3, 1, 32),
        (512, 512, 7, 3, 1, 32), (96, 96, 28, 3, 1, 3), (64, 128, 28, 3, 1, 2),
        (256, 256, 14, 3, 1, 8), (240, 60, 28, 1, 1, 3), (240, 240, 28, 1, 1, 4),
        (256, 256, 28, 3, 1, 2), (128, 128, 56, 3, 1, 4),
    ),
    "spatial": (
        (64, 32, 56, (3, 1)), (32, 64, 56, (1, 3)), (128, 64, 28, (3, 1)), (64, 128, 28, (1, 3)),
        (256, 96, 14, (3, 1)), (96, 256, 14, (1, 3)), (64, 16, 224, (3, 1)),
        (16, 64, 224, (1, 3)), (512, 192, 7, (3, 1)), (192, 512, 7, (1, 3)),
        (3, 8, (112, 224), (7, 1), (2, 1)), (8, 64, 112, (1, 7), (1, 2)), (64, 64, 28, (5, 1)),
        (64, 64, 28, (1, 5)), (128, 100, 28, (3, 1)), (100, 128, 28, (1, 3)),
        (24, 16, 56, (3, 1)), (16, 16, 56, (1, 3)),
    ),
    "1-D": (
        (64, 64, (1024,), 3), (256, 256, (256,), 5), (128, 128, (512,), 9, 1, 128),
        (256, 512, (128,), 1), (16, 16, (4096,), 3), (64, 192, (512,), 3, 1, 64),
        (128, 128, (256,), 3, 1, 4), (64, 64, (8192,), 3), (32, 32, (1024,), 1),
        (64, 64, (1024,), 3, 1, 64),
    ),
}  # fmt: skip
START = Rates(
    direct=6e10, depthwise=4e10, generic=4e10, gathered=2e9, group=2e-7, cached=4e10, memory=1e10,
    cache=2e6, reordered=2e10, copied=2e10, conv=2e-5, operator=2e-6, waking=1e-6,
    compute_scaling=0.9, memory_scaling=0.7,
)  # fmt: skip
NAMES = tuple(field.name for field in fields(Rates))


def main() -> None:
    command, path, runtime, *threads = sys.argv[1:]
    if command == "measure":
        measure(Path(path), runtime, int(threads[0]))
    else:
        fit_and_report(Path(path), runtime)


def measure(path: Path, runtime: str, threads: int) -> None:
    timer.ROUNDS, timer.MOST_ROUNDS = 4, 12
    layers = [("dense", geometry(*sizes), True) for sizes in SPLIT]
    if runtime != "torch.nn":
        layers += [(kind, geometry(*s), False) for kind, several in SINGLE.items() for s in several]
    with path.open("a", encoding="utf-8") as out:
        for kind, layer, split in layers:
            for row in rows(runtime, threads, layer, split):
                out.write(json.dumps({"kind": kind, "runtime": runtime, "threads": threads, **row}))
                out.write("\n")
            out.flush()
            print(kind, layer.in_channels, layer.out_channels, layer.output_size, flush=True)


def geometry(
    channels: int, out: int, size: Any, kernel: Any = 3, stride: Any = 1, groups: int = 1
) -> Geometry:
    size = size if isinstance(size, tuple) else (size, size)
    kernel = kernel if isinstance(kernel, tuple) else (kernel,) * len(size)
    stride = stride if isinstance(stride, tuple) else (stride,) * len(size)
    source = tuple(a * b for a, b in zip(size, stride, strict=True))
    ones = (1,) * len(size)
    return Geometry(channels, out, kernel, stride, ones, groups, False, source, size)


def rows(runtime: str, threads: int, layer: Geometry, split: bool) -> Iterator[dict[str, Any]]:
    """The layer as it is and what may take its place, timed in turn."""
    first, shape = conv(layer), (1, layer.in_channels, *(layer.input_size or ()))
    cases: dict[str, tuple[Branches | None, Work]] = {"original": (None, Work((layer,)))}
    constructs = timer.NN_CONSTRUCTS if runtime == "torch.nn" else EVERYTHING
    if split:
        for rank in RANKS:
            for form in FORMS if runtime != "torch.nn" else ("multiplier", "repeat"):
                choice = Choice("layer", "dac", (min(rank, math.prod(layer.kernel)),), form=form)
                chain = costs.work(layer, replace(choice, form="multiplier")).convs
                branches = (tuple(map(conv, chain)),)
                lowered = lower(branches, form, Reordering(), constructs)
                cases[f"dac {form} {rank}"] = (lowered, costs.work(layer, choice))
        if runtime != "torch.nn":
            for name, others in other_chains(layer):
                cases[name] = ((tuple(map(conv, others)),), Work(tuple(others)))

    def opened(name: str) -> timer.OpenRunner:
        branches, _ = cases[name]
        return adapter.layer_runner(first, shape, branches, threads=threads, device="cpu")

    adapter = timer.adapter_for(Target(runtime, threads))
    least = timer.side_by_side(list(cases), opened)
    aside = adapter.layer_overhead(first, shape, threads=threads, seconds=least["original"])
    for name, (_, work) in cases.items():
        yield {"layer": asdict(layer), "case": name, "work": asdict(work),
               "seconds": least[name] - aside, "aside": aside}  # fmt: skip


def other_chains(g: Geometry) -> Iterator[tuple[str, list[Geometry]]]:
    """The chains of other methods, at some shares of the multiply-adds of the layer."""
    ones, size, k = (1,) * len(g.kernel), math.prod(g.kernel), g.kernel
    c, n = g.in_channels, g.out_channels
    plain = {"kernel": ones, "stride": ones}
    for share in SHARES:
        whole = share * n * c * size
        if min(k) > 1:
            r = max(1, round(whole / (k[0] * c * g.stride[1] + k[1] * n)))
            middle = (g.output_size[0], g.input_size[1])
            column = replace(g, kernel=(k[0], 1), stride=(g.stride[0], 1), out_channels=r)
            row = replace(g, kernel=(1, k[1]), stride=(1, g.stride[1]), in_channels=r)
            chain = [replace(column, output_size=middle), replace(row, input_size=middle)]
            yield f"spatial {r}", chain
        r = max(1, round(whole / (c * size + n)))
        last = replace(g, in_channels=r, input_size=g.output_size, **plain)
        yield f"channel output {r}", [replace(g, out_channels=r), last]
        r = max(1, round(whole / (c * math.prod(g.stride) + n * size)))
        head = replace(g, out_channels=r, output_size=g.input_size, **plain)
        yield f"channel input {r}", [head, replace(g, in_channels=r)]


def conv(g: Geometry) -> Conv:
    weight = np.random.default_rng(0).standard_normal(
        (g.out_channels, g.in_channels // g.groups, *g.kernel)
    )
    weight = (weight / np.sqrt(weight[0].size)).astype(np.float32)
    pad = tuple((k // 2, k // 2) for k in g.kernel)
    return Conv(weight, None, g.stride, pad, g.dilation, g.groups)


def fit_and_report(path: Path, runtime: str) -> None:
    data = read(path, runtime)
    free, start = NAMES, START
    if runtime == "torch.nn":
        free, start = TORCH_NN_ALONE, prices.PRICES["torch"].rates
    rates = fitted(data, runtime, free, start)
    print(",\n".join(f"    {name}={getattr(rates, name):.3g}" for name in NAMES))
    layers = sorted({row["name"] for row in data})
    np.random.default_rng(0).shuffle(layers)
    predictions: dict[int, float] = {}
    for fold in range(FOLDS):
        out = set(layers[fold::FOLDS])
        without = fitted([row for row in data if row["name"] not in out], runtime, free, rates)
        for row in data:
            if row["name"] in out:
                predictions[id(row)] = seconds(row, runtime, without)
    for row in data:
        row["predicted"] = predictions[id(row)]
    report(data)


def read(path: Path, runtime: str) -> list[dict[str, Any]]:
    """The rows of a runtime, without those that are less than the error of what was taken off."""
    data = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    data = [r for r in data if r["runtime"] == runtime and r["seconds"] > 0.3 * r["aside"]]
    for row in data:
        row["name"] = json.dumps(row["layer"])
        convs = tuple(_geometry(conv) for conv in row["work"].pop("convs"))
        row["work"] = Work(convs, **row["work"])
    return data


def _geometry(values: dict[str, Any]) -> Geometry:
    return Geometry(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def seconds(row: dict[str, Any], runtime: str, rates: Rates) -> float:
    return Prices(prices.PRICES[runtime].kernels, rates).seconds(row["work"], row["threads"])


def fitted(
    data: Sequence[dict[str, Any]], runtime: str, free: Sequence[str], start: Rates
) -> Rates:
    """The rates with the least error of the logarithms; single rows that are far off count less.

    Half of what was taken off a time is added to it and to its prediction, as its error is about
    that. Rates that the data says nothing of stay near where they start.
    """
    if len({row["threads"] for row in data}) == 1:
        free = [n for n in free if n not in ("waking", "compute_scaling", "memory_scaling")]
    first = np.log([getattr(start, name) for name in free])
    aside = np.array([row["aside"] / 2 for row in data])
    measured = np.array([row["seconds"] for row in data])

    def rates(logarithms: Any) -> Rates:
        return replace(start, **dict(zip(free, map(float, np.exp(logarithms)), strict=True)))

    def errors(logarithms: Any) -> Any:
        now = rates(logarithms)
        predicted = np.array([seconds(row, runtime, now) for row in data])
        ratios = np.log((predicted + aside) / (measured + aside))
        return np.concatenate([ratios, 0.03 * (logarithms - first)])

    return rates(least_squares(errors, first, loss="soft_l1", f_scale=0.1, max_nfev=30).x)


def report(data: Sequence[dict[str, Any]]) -> None:
    """The errors of the predictions, and the time lost by choosing the form by them."""
    errors: dict[str, list[float]] = defaultdict(list)
    forms: dict[tuple[Any, ...], dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in data:
        method, *more = row["case"].split()
        group = f"{row['kind']} convs" if method == "original" else f"chains: {method}"
        error = abs(math.log(row["predicted"] / row["seconds"]))
        for name in (group, "all"):
            errors[name].append(error)
        if method == "dac":
            key = (row["name"], more[1], row["threads"])
            forms[key][more[0]] = (row["seconds"], row["predicted"])
    print("\n| | rows | median error | 90 % within |\n| --- | ---: | ---: | ---: |")
    for name, values in errors.items():
        median, most = (100 * math.expm1(np.quantile(values, q)) for q in (0.5, 0.9))
        print(f"| {name} | {len(values)} | {median:.0f} % | {most:.0f} % |")
    whole = [times for times in forms.values() if len(times) == max(map(len, forms.values()))]

    def loss(pick: Any) -> float:
        """The mean time, over the fastest form's, of the form that ``pick`` names."""
        over = [t[pick(t)][0] / min(s for s, _ in t.values()) for t in whole]
        return 100 * (float(np.exp(np.mean(np.log(over)))) - 1)

    print(f"\nlost by the form that is predicted to be the fastest: "
          f"{loss(lambda t: min(t, key=lambda f: t[f][1])):.1f} %")  # fmt: skip
    for form in whole[0]:
        print(f"lost by the form {form} throughout: {loss(lambda t, form=form: form):.1f} %")


if __name__ == "__main__":
    main()
