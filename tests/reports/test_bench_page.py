"""A benchmark as a page: which model is faster, only where that is significant."""

from __future__ import annotations

from dacconv.reports import bench_page
from dacconv.timing.benchmark.result import Benchmark, Case, Machine, Memory, Subject, Timing
from dacconv.timing.intervals import Interval

MIB = 2**20
MEMORY = Memory(100 * MIB, 150 * MIB, 140 * MIB)


def timing(name: str, ms: float, ratio: Interval | None) -> Timing:
    return Timing(name, Interval(ms, ms, ms, 0.95), ms, ms, 9, 0.0, (ms,), MEMORY, ratio)


def benchmark() -> Benchmark:
    timings = (
        timing("net.onnx", 2.0, None),
        timing("fast.onnx", 1.0, Interval(2.0, 1.9, 2.1, 0.95)),
        timing("slow.onnx", 4.0, Interval(0.5, 0.4, 0.6, 0.95)),
        timing("<b>same", 2.0, Interval(1.0, 0.9, 1.1, 0.95)),
    )
    models = tuple(Subject(t.model, t.model, "onnx", "onnxruntime 1", 5 * MIB) for t in timings)
    machine = Machine("a processor", 2, 8.0, "Linux", "3.11", 0.1)
    case = Case(1, 2, ("x 1x3x8x8",), 9, timings)
    return Benchmark(machine, models, "cpu", None, False, 0, (case,), notes=("a busy machine",))


def test_who_is_faster() -> None:
    facts = [(fact.value, fact.label, fact.tone) for fact in bench_page.page(benchmark()).facts]
    assert facts == [
        ("2.00 ms", "net.onnx", ""),
        ("2.00 x", "as fast", "good"),
        ("2.00 x", "slower", "bad"),
        ("no difference", "that is significant", ""),
    ]


def test_the_page_holds_everything() -> None:
    text = bench_page.render(benchmark())
    assert text == bench_page.render(benchmark())
    for words in ("a busy machine", "Batch 1, 2 threads", "1.90 - 2.10", "50.0 MiB", "<svg style"):
        assert words in text
    assert "<b>same" not in text
    assert "&lt;b&gt;same" in text
