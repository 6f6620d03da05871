"""dacconv: smaller, faster convolutional networks from trained checkpoints, without data.

>>> import dacconv
>>> model = dacconv.load("resnet.onnx")
>>> plan = dacconv.plan(model, rank=2, last_k=5)
>>> conversion = dacconv.convert(model, plan)
>>> conversion.save("resnet.dac.onnx")
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import takes a moment in which Ctrl-C would show
if TYPE_CHECKING:
    from typing import Any

    from dacconv.api import bench as bench
    from dacconv.api import calibrate as calibrate
    from dacconv.api import convert as convert
    from dacconv.api import fuse as fuse
    from dacconv.api import inspect as inspect
    from dacconv.api import load as load
    from dacconv.api import plan as plan
    from dacconv.api import survey as survey
    from dacconv.api import sweep as sweep
    from dacconv.api import verify as verify
    from dacconv.conversion.pipeline import Conversion as Conversion
    from dacconv.conversion.report import Report as Report
    from dacconv.errors import DacconvError as DacconvError
    from dacconv.formats.base import LoadOptions as LoadOptions
    from dacconv.formats.torch.state.apply import apply as apply
    from dacconv.graph.types import Choice as Choice
    from dacconv.graph.types import Plan as Plan
    from dacconv.sweeps.results import Sweep as Sweep
    from dacconv.timing.benchmark.result import Benchmark as Benchmark

__version__ = "0.1.0"

_MODULES = {
    "Benchmark": "timing.benchmark.result",
    "Choice": "graph.types",
    "Conversion": "conversion.pipeline",
    "DacconvError": "errors",
    "LoadOptions": "formats.base",
    "Plan": "graph.types",
    "Report": "conversion.report",
    "Sweep": "sweeps.results",
    "apply": "formats.torch.state.apply",
    **dict.fromkeys(
        (
            "bench",
            "calibrate",
            "convert",
            "fuse",
            "inspect",
            "load",
            "plan",
            "survey",
            "sweep",
            "verify",
        ),
        "api",
    ),
}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    """Resolve the public names on use, so that importing dacconv costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dacconv' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"dacconv.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
