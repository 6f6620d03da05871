"""The form of every layer of a plan, and the layers that are faster without a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dacconv.decompositions import METHODS
from dacconv.decompositions.forms import AUTO, FORMS, MULTIPLIER
from dacconv.errors import UsageError
from dacconv.graph.plan_json import rank_text
from dacconv.graph.types import Choice, Layer, Plan, Skipped
from dacconv.timing.speeds import Speeds

SLOWER = 0.97
"""The largest measured time of a split, relative to the conv's, that counts as faster."""

LIKELY_SLOWER = 1.1
"""From this predicted ratio on, a split is reported as likely to be slower than the conv."""

Possible = Callable[[Layer], Sequence[str]]


def choose_forms(
    plan: Plan,
    layers: Sequence[Layer],
    form: str,
    possible: Possible,
    speeds: Speeds,
    *,
    format: str,
) -> Plan:
    """The plan with ``form``, or with the fastest one for each layer where that is ``auto``.

    ``possible`` says which forms the format can write. Where ``speeds`` are measured, a layer
    that is faster in no form stays unsplit.

    Raises:
        UsageError: no such form, or the format cannot write it.
    """
    if form not in (AUTO, *FORMS):
        names = ", ".join((*FORMS, AUTO))
        raise UsageError(f"'{form}' is not one of {names}", where="--form")
    by_name = {layer.name: layer for layer in layers}
    choices: list[Choice] = []
    slower: dict[str, Skipped] = {}
    for choice in plan.choices:
        layer = by_name[choice.layer]
        method = METHODS[choice.method]
        forms = [name for name in possible(layer) if name in method.forms] or [AUTO]
        requested = form if choice.form == AUTO and method.forms else choice.form
        if requested != AUTO and requested not in forms:
            raise UsageError(
                f"form '{requested}' cannot be written for layer {layer.name}: "
                f"the file is a {format}",
                where="--form",
                hint=f"it can be {' or '.join(forms)}",
            )
        candidates = forms if requested == AUTO else [requested]
        if method.forms and choice.rank == (1,):  # at rank 1 all are the same
            candidates = [MULTIPLIER]
        times = speeds(layer, choice, candidates)
        best = min(times, key=lambda name: times[name]) if times else _default(candidates)
        if speeds.measured and times and times[best] > SLOWER:
            slower[layer.name] = Skipped(layer.name, _reason(best, choice, times[best]))
        else:
            note = choice.note if speeds.measured else _note(choice, times.get(best))
            choices.append(replace(choice, form=best, note=note))
    skipped = {skip.layer: skip for skip in plan.skipped} | slower
    in_order = tuple(skipped[x.name] for x in layers if x.name in skipped)
    return replace(plan, choices=tuple(choices), skipped=in_order)


def _default(forms: Sequence[str]) -> str:
    return forms[0] if len(forms) == 1 else MULTIPLIER


def _note(choice: Choice, ratio: float | None) -> str:
    """The note of a choice, with a warning where the split is predicted to be slower."""
    if ratio is None or ratio < LIKELY_SLOWER:
        return choice.note
    warning = f"likely {ratio:.1f} x the conv's time; with --tune it is measured and not split"
    return f"{choice.note}; {warning}" if choice.note else warning


def _reason(form: str, choice: Choice, ratio: float) -> str:
    rank = rank_text(choice.rank)
    best = "" if form == AUTO else f" at best (form {form})"
    return f"measured: rank {rank} takes {ratio:.2f} x the conv's time{best}"
