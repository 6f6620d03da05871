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
    from dacconv.benchmark.result import Benchmark as Benchmark
    from dacconv.benchmark.run import bench as bench
    from dacconv.errors import DacconvError as DacconvError
    from dacconv.models.base import LoadOptions as LoadOptions
    from dacconv.models.torch_apply import apply as apply
    from dacconv.pipeline import Conversion as Conversion
    from dacconv.pipeline import calibrate as calibrate
    from dacconv.pipeline import convert as convert
    from dacconv.pipeline import inspect as inspect
    from dacconv.pipeline import load as load
    from dacconv.pipeline import plan as plan
    from dacconv.pipeline import survey as survey
    from dacconv.report import Report as Report
    from dacconv.sweeps.results import Sweep as Sweep
    from dacconv.sweeps.run import sweep as sweep
    from dacconv.types import Choice as Choice
    from dacconv.types import Plan as Plan
    from dacconv.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "Benchmark": "benchmark.result",
    "Choice": "types",
    "Conversion": "pipeline",
    "DacconvError": "errors",
    "LoadOptions": "models.base",
    "Plan": "types",
    "Report": "report",
    "apply": "models.torch_apply",
    "bench": "benchmark.run",
    "calibrate": "pipeline",
    "convert": "pipeline",
    "inspect": "pipeline",
    "load": "pipeline",
    "plan": "pipeline",
    "Sweep": "sweeps.results",
    "survey": "pipeline",
    "sweep": "sweeps.run",
    "verify": "verification",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Resolve the public names on use, so that importing dacconv costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'dacconv' has no attribute {name!r}")
    value = getattr(import_module(f"dacconv.{_HOME[name]}"), name)
    globals()[name] = value
    return value
