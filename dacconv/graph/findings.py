"""Measurements of a conversion: the values that a report holds."""

from __future__ import annotations

from dataclasses import dataclass

from dacconv.graph.types import Rank


@dataclass(frozen=True, slots=True)
class Fused:
    """Nodes that became one conv without loss.

    ``name`` is the conv's, ``absorbed`` are the names of the nodes, and ``what`` is a summary of
    their kinds, such as ``1 Conv, 1 BatchNormalization``.
    """

    name: str
    absorbed: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class LayerFit:
    """The mean squared error of a layer's output over its variance, with all layers converted.

    ``predicted`` is the error on the inputs that the layer was fitted to. ``plain`` and ``held``
    are errors on held-out inputs: of the plain split, and of the factors that the converted model
    has, which ``what`` describes.
    """

    predicted: float
    plain: float
    held: float
    what: str


@dataclass(frozen=True, slots=True)
class LayerError:
    """The error of splitting one kernel: ``|T - T_r| / |T|``, Frobenius norm.

    ``fit`` is the error of its output, if the model was calibrated. ``bias_added`` is true if
    the layer has got a bias that the original does not have.
    """

    kernel_error: float
    fit: LayerFit | None = None
    bias_added: bool = False

    @property
    def energy_kept(self) -> float:
        """The share of squared singular values that is kept."""
        return 1 - self.kernel_error**2


@dataclass(frozen=True, slots=True)
class Calibration:
    """The inputs of a calibration, and its effect on the model's outputs.

    Errors are squared and relative to the outputs' variance, for the plain conversion and for
    the calibrated one, on held-out inputs and on a second family of inputs (None if there is
    none). ``taken`` is true if the calibrated factors are used: neither error is larger.
    """

    kind: str
    inputs: str
    samples: int
    notes: tuple[str, ...]
    plain_error: float
    error: float
    second_plain_error: float | None
    second_error: float | None
    taken: bool


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """The precision that a layer was written in, and the reason where it stays as it was."""

    layer: str
    precision: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PrecisionCheck:
    """How a model was brought to a lower precision, and the damage of that alone.

    Damages are squared errors of the outputs, relative to their variance, against the same model
    in fp32: on held-out inputs, on a second family of inputs (None if there is none), and without
    the runtime's optimiser. ``tried`` are settings with the mean damage of each; above ``limit``
    sensitive layers were put back to fp32. The settings are those of ``graph.precision``.
    """

    precision: str
    inputs: str
    notes: tuple[str, ...]
    layers: tuple[LayerPrecision, ...]
    activations: str = ""
    ranges: str = ""
    reduce_range: bool = False
    correct_bias: bool = False
    damage: float | None = None
    second_damage: float | None = None
    unoptimised_damage: float | None = None
    limit: float | None = None
    tried: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RankTime:
    """A split layer in its fastest form: its time and its MACs over those of the original."""

    method: str
    rank: Rank
    form: str
    time: float
    macs: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Measured milliseconds of a layer, as it is and at several ranks.

    ``after_ms`` is the time in the converted model: ``before_ms`` where the layer is not split.
    """

    layer: str
    before_ms: float
    after_ms: float
    ranks: tuple[RankTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of single layers, each in a network of its own; ``where`` is machine and runtime."""

    where: str
    layers: tuple[LayerTime, ...]

    @property
    def before_ms(self) -> float:
        """The sum over the measured layers of the original."""
        return sum(layer.before_ms for layer in self.layers)

    @property
    def after_ms(self) -> float:
        """The sum over the measured layers of the converted model."""
        return sum(layer.after_ms for layer in self.layers)


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """The comparison of one output on the same inputs; None for what cannot be computed.

    ``not_finite`` counts the runs in which the original's output held NaN or infinite values.
    ``noise`` is the relative error of the original against itself, by rounding alone; ``varies``
    is true where even the shape of its output depends on rounding.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    matches: bool
    relative_error: float | None
    max_abs_error: float | None
    agreement: float | None
    not_finite: int = 0
    chance: float | None = None
    noise: float | None = None
    varies: bool = False


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one run, both models alternating on the same input.

    The times are medians and ``speedup`` is their ratio, original over converted; ``low`` and
    ``high`` are the quartiles of the ratio in the single rounds. ``interval`` contains the median
    of the ratio with a probability of 95 %; None where the rounds are too few to say.
    """

    original_ms: float
    converted_ms: float
    speedup: float
    low: float
    high: float
    rounds: int
    batch: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A budget that a search tried: its ``options`` as they are typed, and what came of them.

    ``left`` is the share of the MACs, ``speedup`` the ratio of times, original over converted;
    None where the budget is out of reach. ``reached`` says whether it reached the goal.
    """

    options: str
    left: float | None
    speedup: float | None
    level: str
    reason: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Search:
    """The budgets that were tried for a goal, in their order; ``in_time``: none was left out."""

    goal: str
    trials: tuple[Trial, ...]
    seconds: float
    in_time: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """Original and converted on the same inputs, in the real runtime.

    ``relative_error`` is the largest over the outputs of ``|y - y'| / |y|``, Frobenius norm
    over all samples; None where it could not be computed. ``agreement`` is the share of
    samples with the same top class, None where no output looks like class scores or where no
    sample's scores could be compared. ``kind`` says what the inputs were, ``family`` how they
    were made, and ``notes`` what was assumed about them. ``top1`` is the accuracy of both models
    on labelled inputs.
    """

    relative_error: float | None
    agreement: float | None
    outputs: tuple[OutputCheck, ...]
    latency: Latency
    samples: int
    seed: int
    runtime: str
    inputs: tuple[str, ...]
    family: str = "standard normal"
    kind: str = "inputs of noise"
    notes: tuple[str, ...] = ()
    top1: tuple[float, float] | None = None

    @property
    def on_user_data(self) -> bool:
        """Whether the inputs were the user's own images."""
        return self.kind.startswith("images of ")

    @property
    def noise(self) -> float | None:
        """The largest relative error of the original against itself; None if not measured."""
        return max((o.noise for o in self.outputs if o.noise is not None), default=None)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """The outputs that could not be compared, because the original's are NaN or infinite."""
        return tuple(
            output.name
            for output in self.outputs
            if output.not_finite and output.relative_error is None
        )
