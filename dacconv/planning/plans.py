"""Plans: made by a policy, or read back from a file that somebody edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from dacconv.decompositions import ALL, METHODS, Method, refusal
from dacconv.decompositions.costs import cost_share
from dacconv.decompositions.forms import AUTO, FORMS
from dacconv.errors import UsageError
from dacconv.graph.plan_json import PLAN_VERSION, rank_text
from dacconv.graph.precision import precision_from_dict
from dacconv.graph.types import Choice, Layer, Plan, Rank, Skipped
from dacconv.planning import BUDGETS, POLICIES, Evidence, RankOptions, Selection, select
from dacconv.planning.base import check_rank, method_of, same_rank
from dacconv.planning.ranks import named_methods
from dacconv.support.json_values import is_text, read_json, shown

ANY_METHOD, DAC = "auto", "dac"
NOT_SELECTED = "not selected"
SPARED = "the budget is met with less damage elsewhere"


def make_plan(options: RankOptions, selection: Selection, evidence: Evidence) -> Plan:
    """The plan of the policy that ``options`` asks for, over the selected layers.

    Raises:
        UsageError: no policy or several, a bad rank, an impossible selection, an unknown method.
    """
    policies = [name for name in POLICIES if _is_given(getattr(options, name))]
    if len(policies) != 1:
        have = " and ".join(f"--{name}" for name in policies) or "none"
        raise UsageError(
            f"one way to choose ranks is needed, {have} given",
            hint="--rank R, --ranks NAME=R,..., --energy 0.95, --vbmf, --macs 0.45, --params 0.5, "
            "--latency 0.6, or --plan FILE",
        )
    (policy,) = policies
    budgeted = policy in (*BUDGETS, "latency")
    methods = methods_of(options.method, budgeted=budgeted)
    named = named_methods(options.ranks)
    layers = eligible_by(evidence.layers, (*methods, *named))
    chosen = select(layers, selection)
    choices = POLICIES[policy](chosen, methods, options, evidence)
    plan = settle(layers, choices, allow_costlier=options.allow_costlier)
    spared = {layer.name for layer in chosen} if budgeted else set()
    return replace(
        plan,
        skipped=tuple(
            replace(s, reason=SPARED) if s.layer in spared and s.reason == NOT_SELECTED else s
            for s in plan.skipped
        ),
    )


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != {}


def methods_of(names: str | None, *, budgeted: bool) -> tuple[Method, ...]:
    """The methods that ``--method`` names; see ``RankOptions``.

    Raises:
        UsageError: there is no such method; names the nearest. Or ``auto`` without a budget.
    """
    if names is None:
        return ALL if budgeted else (METHODS[DAC],)
    if names.strip() == ANY_METHOD:
        if not budgeted:
            raise UsageError(
                "only a budget chooses the method of each layer",
                where=f"--method {ANY_METHOD}",
                hint="give --macs 0.5, or name a method",
            )
        return ALL
    return tuple(dict.fromkeys(method_of(name.strip(), "--method") for name in names.split(",")))


def eligible_by(layers: Sequence[Layer], methods: Sequence[Method]) -> tuple[Layer, ...]:
    """The layers; one that none of the methods can split says why in ``skip``."""
    return tuple(
        replace(layer, skip=reason) if (reason := refusal(layer, methods)) else layer
        for layer in layers
    )


def settle(layers: Sequence[Layer], choices: Sequence[Choice], *, allow_costlier: bool) -> Plan:
    """A plan for all layers: ranks clipped to full rank, costlier splits left alone."""
    by_name = {choice.layer: choice for choice in choices}
    splits: list[Choice] = []
    skipped: list[Skipped] = []
    for layer in layers:
        choice = by_name.get(layer.name)
        if layer.skip is not None:
            skipped.append(Skipped(layer.name, layer.skip))
        elif choice is None:
            skipped.append(Skipped(layer.name, NOT_SELECTED))
        elif reason := METHODS[choice.method].refuses(layer):
            skipped.append(Skipped(layer.name, reason))
        else:
            clipped = clip(choice, METHODS[choice.method].full_rank(layer.geometry))
            share = cost_share(layer.geometry, choice.method, clipped.rank)
            if share >= 1 and not allow_costlier:
                rank = rank_text(clipped.rank)
                why = f"rank {rank} would cost {share:.3g} x the conv: left as it is"
                note = f"{why} ({clipped.note})" if clipped.note else why
                skipped.append(Skipped(layer.name, note))
            else:
                splits.append(clipped)
    return Plan(tuple(splits), tuple(skipped))


def clip(choice: Choice, full_rank: Rank) -> Choice:
    """The choice with its rank no higher than full rank, and a note where it was higher."""
    rank = tuple(map(min, choice.rank, full_rank))
    if rank == choice.rank:
        return choice
    note = f"rank {rank_text(choice.rank)} is above full rank {rank_text(full_rank)}"
    return replace(choice, rank=rank, note=note)


def plan_from_json(text: str, where: str) -> Plan:
    """Read a plan, or a report that holds one, from JSON text.

    Raises:
        UsageError: not JSON, not a plan, an unknown key, method or rank.
    """
    data = read_json(text, where)
    if isinstance(data, dict) and "plan" in data:
        data = data["plan"]
    return plan_from_dict(data, where)


def plan_from_dict(data: object, where: str) -> Plan:
    """The inverse of :func:`plan_to_dict`, for data that a person may have edited."""
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise UsageError(
            "not a plan: no list 'layers'",
            where=where,
            hint="`dacconv convert --dry-run -o FILE` writes one",
        )
    version = data.get("plan_version", PLAN_VERSION)
    if isinstance(version, bool) or version not in (1, PLAN_VERSION):
        raise UsageError(
            f"plan version {shown(version)} is not known (this dacconv reads {PLAN_VERSION})",
            where=where,
        )
    choices = tuple(_choice(entry, where) for entry in data["layers"])
    for name, count in Counter(choice.layer for choice in choices).items():
        if count > 1:
            raise UsageError(f"layer {name} occurs twice", where=where)
    skipped = data.get("skipped", [])
    if not isinstance(skipped, list) or not all(isinstance(s, dict) for s in skipped):
        raise UsageError("'skipped' is not a list of objects", where=where)
    if not all(is_text(s.get(key, "")) for s in skipped for key in ("name", "reason")):
        raise UsageError("'skipped' holds a name or a reason that is not text", where=where)
    left = tuple(Skipped(s.get("name", ""), s.get("reason", "")) for s in skipped)
    precision = data.get("precision")
    if precision is None:
        return Plan(choices, left)
    return Plan(choices, left, precision_from_dict(precision, where))


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
    settled = settle(layers, plan.choices, allow_costlier=allow_costlier)
    return replace(settled, precision=plan.precision)


def _choice(entry: object, where: str) -> Choice:
    if not isinstance(entry, Mapping) or not is_text(entry.get("name")):
        raise UsageError(
            f"not a layer of a plan: {shown(entry)}",
            where=where,
            hint='write {"name": "conv1", "method": "dac", "rank": 2}',
        )
    name = entry["name"]
    unknown = set(entry) - {"name", "method", "rank", "form", "note"}
    if unknown:
        raise UsageError(f"layer {name}: unknown key '{min(unknown)}'", where=where)
    if not is_text(entry.get("note", "")):
        raise UsageError(f"layer {name}: its note is not text", where=where)
    method = entry.get("method", "dac")
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(
            f"layer {name}: unknown method {shown(method)}",
            where=where,
            hint=f"known: {', '.join(METHODS)}",
        )
    form = entry.get("form", AUTO)
    if not isinstance(form, str) or form not in (AUTO, *FORMS):
        known = ", ".join((*FORMS, AUTO))
        raise UsageError(
            f"layer {name}: unknown form {shown(form)}", where=where, hint=f"known: {known}"
        )
    rank = _rank(METHODS[method], entry.get("rank"), f"{where}, layer {name}")
    return Choice(name, method, rank, form=form)


def _rank(method: Method, value: object, where: str) -> Rank:
    """A rank as a plan has it: a number, or a list with one number for each rank."""
    if not isinstance(value, list):
        return same_rank(method, check_rank(value, where))
    count = len(method.formula.ranks)
    if len(value) != count:
        raise UsageError(f"{method.name} has {count} ranks, not {len(value)}", where=where)
    return tuple(check_rank(rank, where) for rank in value)
