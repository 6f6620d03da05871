"""Plans: made by a policy, or read back from a file that somebody edited."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from dacconv.decompositions import METHODS, Method
from dacconv.decompositions.forms import AUTO, FORMS
from dacconv.errors import UsageError
from dacconv.graph.cost import layer_cost, total
from dacconv.graph.plan_json import PLAN_VERSION
from dacconv.graph.types import Choice, Geometry, Layer, Plan, Skipped
from dacconv.planning import BUDGETS, POLICIES, RankOptions, Selection, Spectra, select
from dacconv.planning.uniform import check_rank

NOT_SELECTED = "not selected"
SPARED = "the budget is met with less damage elsewhere"


def make_plan(
    layers: Sequence[Layer],
    options: RankOptions,
    selection: Selection,
    spectra: Spectra,
    *,
    method: str = "dac",
    allow_costlier: bool = False,
) -> Plan:
    """The plan of the policy that ``options`` asks for, over the selected layers.

    Raises:
        UsageError: no policy or several, a bad rank, a selection that cannot be.
    """
    given = [name for name in POLICIES if getattr(options, name) not in (None, {})]
    if len(given) != 1:
        have = " and ".join(f"--{name}" for name in given) or "none"
        raise UsageError(
            f"one way to choose ranks is needed, {have} given",
            hint="--rank R, --ranks NAME=R,..., --energy 0.95, --macs 0.45, --params 0.5, "
            "--latency 0.6, or --plan FILE",
        )
    chosen = select(layers, selection)
    options = replace(options, everything=tuple(layers))
    wanted = POLICIES[given[0]](chosen, METHODS[method], options, spectra)
    made = settle(layers, wanted, allow_costlier=allow_costlier)
    spared = {layer.name for layer in chosen} if given[0] in (*BUDGETS, "latency") else set()
    return replace(
        made,
        skipped=tuple(
            replace(s, reason=SPARED) if s.layer in spared and s.reason == NOT_SELECTED else s
            for s in made.skipped
        ),
    )


def settle(layers: Sequence[Layer], wanted: Sequence[Choice], *, allow_costlier: bool) -> Plan:
    """A plan for all layers: ranks clipped to full rank, costlier splits left alone."""
    by_name = {choice.layer: choice for choice in wanted}
    choices: list[Choice] = []
    skipped: list[Skipped] = []
    for layer in layers:
        choice = by_name.get(layer.name)
        if layer.skip is not None:
            skipped.append(Skipped(layer.name, layer.skip))
        elif choice is None:
            skipped.append(Skipped(layer.name, NOT_SELECTED))
        else:
            method = METHODS[choice.method]
            clipped = clip(choice, method.full_rank(layer.geometry))
            share = cost_share(layer.geometry, method, clipped.rank)
            if share >= 1 and not allow_costlier:
                why = f"rank {clipped.rank} would cost {share:.3g} x the conv: left as it is"
                note = f"{why} ({clipped.note})" if clipped.note else why
                skipped.append(Skipped(layer.name, note))
            else:
                choices.append(clipped)
    return Plan(tuple(choices), tuple(skipped))


def clip(choice: Choice, full_rank: int) -> Choice:
    """The choice with its rank no higher than full rank, and a note where it was."""
    if choice.rank <= full_rank:
        return choice
    return replace(
        choice, rank=full_rank, note=f"rank {choice.rank} is above full rank {full_rank}"
    )


def cost_share(geometry: Geometry, method: Method, rank: int) -> float:
    """The MACs of the split over those of the conv; sizes do not matter for the ratio."""
    size = geometry.output_size or (1,) * len(geometry.kernel)
    sized = replace(geometry, output_size=size)
    after = total(layer_cost(part) for part in method.parts(sized, rank)).macs
    before = layer_cost(sized).macs
    return after / before if after is not None and before else 1.0


def plan_from_json(text: str, where: str) -> Plan:
    """Read a plan, or a report that holds one, from JSON text.

    Raises:
        UsageError: not JSON, not a plan, an unknown key, method or rank.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"not JSON: {error}", where=where) from error
    if isinstance(data, dict) and "plan" in data:
        data = data["plan"]
    return plan_from_dict(data, where)


def plan_from_dict(data: object, where: str) -> Plan:
    """The inverse of :func:`plan_to_dict`, for data that a person may have edited."""
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise UsageError(
            "not a plan: no list 'layers'",
            where=where,
            hint="`convert --dry-run --plan-out` makes one",
        )
    version = data.get("plan_version", PLAN_VERSION)
    if version != PLAN_VERSION:
        raise UsageError(
            f"plan version {version} is not known (this dacconv reads {PLAN_VERSION})", where=where
        )
    choices = tuple(_choice(entry, where) for entry in data["layers"])
    names = [choice.layer for choice in choices]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"layer {name} occurs twice", where=where)
    skipped = data.get("skipped", [])
    if not isinstance(skipped, list) or not all(isinstance(s, dict) for s in skipped):
        raise UsageError("'skipped' is not a list of objects", where=where)
    left = tuple(Skipped(str(s.get("name")), str(s.get("reason"))) for s in skipped)
    return Plan(choices, left)


def bind(plan: Plan, layers: Sequence[Layer], *, where: str, allow_costlier: bool) -> Plan:
    """Hold a plan from a file against the model's layers.

    Raises:
        UsageError: a layer that the model does not have, or that cannot be split.
    """
    known = {layer.name: layer for layer in layers}
    for choice in plan.choices:
        layer = known.get(choice.layer)
        if layer is None:
            near = ", ".join(get_close_matches(choice.layer, known, n=3, cutoff=0.4))
            raise UsageError(
                f"the model has no layer '{choice.layer}'",
                where=where,
                hint=f"the nearest are {near}" if near else "`dacconv inspect` lists the layers",
            )
        if layer.skip:
            raise UsageError(f"layer {choice.layer} cannot be split: {layer.skip}", where=where)
    return settle(layers, plan.choices, allow_costlier=allow_costlier)


def _choice(entry: object, where: str) -> Choice:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UsageError(f"not a layer of a plan: {json.dumps(entry)}", where=where)
    name = entry["name"]
    unknown = set(entry) - {"name", "method", "rank", "form", "note"}
    if unknown:
        raise UsageError(f"layer {name}: unknown key '{min(unknown)}'", where=where)
    method = entry.get("method", "dac")
    if method not in METHODS:
        raise UsageError(
            f"layer {name}: unknown method '{method}'",
            where=where,
            hint=f"known: {', '.join(METHODS)}",
        )
    form = entry.get("form", AUTO)
    if form not in (AUTO, *FORMS):
        known = ", ".join((*FORMS, AUTO))
        raise UsageError(
            f"layer {name}: unknown form '{form}'", where=where, hint=f"known: {known}"
        )
    rank = check_rank(entry.get("rank"), f"{where}, layer {name}")
    return Choice(name, method, rank, form=form)
