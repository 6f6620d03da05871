"""dacconv: smaller, faster convolutional networks from trained checkpoints, without data.

>>> import dacconv
>>> model = dacconv.load("resnet.onnx")
>>> plan = dacconv.plan(model, rank=2, last_k=5)
>>> done = dacconv.convert(model, plan)
>>> done.save("resnet.dac.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dacconv.conversion.pipeline import Conversion as Conversion
    from dacconv.conversion.pipeline import calibrate as calibrate
    from dacconv.conversion.pipeline import convert as convert
    from dacconv.conversion.pipeline import inspect as inspect
    from dacconv.conversion.pipeline import load as load
    from dacconv.conversion.pipeline import plan as plan
    from dacconv.conversion.pipeline import survey as survey
    from dacconv.conversion.report import Report as Report
    from dacconv.conversion.verification import verify as verify
    from dacconv.errors import DacconvError as DacconvError
    from dacconv.formats.base import LoadOptions as LoadOptions
    from dacconv.formats.torch.state.apply import apply as apply
    from dacconv.graph.types import Choice as Choice
    from dacconv.graph.types import Plan as Plan
    from dacconv.sweeps.results import Sweep as Sweep
    from dacconv.sweeps.run import sweep as sweep
    from dacconv.timing.benchmark.result import Benchmark as Benchmark
    from dacconv.timing.benchmark.run import bench as bench

__version__ = "0.1.0"

_HOME = {
    "Benchmark": "timing.benchmark.result",
    "Choice": "graph.types",
    "Conversion": "conversion.pipeline",
    "DacconvError": "errors",
    "LoadOptions": "formats.base",
    "Plan": "graph.types",
    "Report": "conversion.report",
    "apply": "formats.torch.state.apply",
    "bench": "timing.benchmark.run",
    "calibrate": "conversion.pipeline",
    "convert": "conversion.pipeline",
    "inspect": "conversion.pipeline",
    "load": "conversion.pipeline",
    "plan": "conversion.pipeline",
    "Sweep": "sweeps.results",
    "survey": "conversion.pipeline",
    "sweep": "sweeps.run",
    "verify": "conversion.verification",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Resolve the public names on use, so that importing dacconv costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'dacconv' has no attribute {name!r}")
    value = getattr(import_module(f"dacconv.{_HOME[name]}"), name)
    globals()[name] = value
    return value
