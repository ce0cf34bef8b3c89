"""The result in a few sentences at the top of the page: who leads, whoever it is, and what the generator alone would have
given.

Methods are ranked on one network, the one that clients train, which each of them scores once. Ranking each by the best of
its models would give those with more models more draws. Of several data sets or partitions, the one that most of them share
is told of; the others stand in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fedstill.report.groups import Group, Point, labelled
from fedstill.report.roles import (
    HEADS,
    ROUNDING,
    client_model,
    commonest,
    differ,
    network,
    network_title,
    stage,
    table,
    where,
)
from fedstill.report.words import listed, percent, points

__all__ = ["NEAR", "verdict"]

NEAR = 0.02
"""PriorOnly that is this much below FedDGM, or less, counts as almost as well."""

BETTER, LEVEL, ALMOST, LESS = "does better", "is level", "does almost as well", "does less well"
_COMPARED = (BETTER, LEVEL, ALMOST, LESS)

_NAMED = 4  # methods beside the first two that a sentence names
_MOST = 8  # results on other networks that a sentence lists


class _Score(NamedTuple):
    group: Group
    point: Point


def verdict(groups: Sequence[Group]) -> str:
    """The sentences, from the last round that every method in the ranking has finished.

    Two scores are *level* where their bands, mean ± standard deviation over seeds, touch.
    """
    everywhere = [group for group in groups if client_model(group)]
    if not everywhere:
        if any(run.rows for group in groups for run in group.runs):
            return "No network of the server’s has been scored; what clients score on their own images stands below."
        return "No round has been scored yet, so there is no result to state."
    scored = _named(commonest(everywhere, stage))
    alike = commonest(scored, network)
    last = min(max(_own(group)) for group in alike)
    ranked = [_Score(group, curve[last]) for group in alike if last in (curve := _own(group))]
    told = where(scored[0], everywhere)
    opening = f"after {last} round{'s' if last > 1 else ''}{f', at {told}' if told else ''}"
    sentences = [_lead(sorted(ranked, key=lambda score: -score.point.mean), opening)]
    sentences += _others(scored, alike, last)
    sentences += _alone(scored, last)
    if len(scored) < len(everywhere):
        sentences.append("what was run on other data or partitions stands in the table")
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _named(groups: Sequence[Group]) -> list[Group]:
    """Called by what tells methods apart that train the same network: a sentence names data and network once."""
    found = {id(group): group for group in groups}
    for which in {network(group) for group in groups}:
        its = [group for group in groups if network(group) == which]
        found |= {id(group): short for group, short in zip(its, labelled(its), strict=True)}
    return [found[id(group)] for group in groups]


def _own(group: Group) -> Mapping[int, Point]:
    """Accuracy by round of the network that its clients train."""
    return group.curve(client_model(group))


def _lead(ranked: Sequence[_Score], opening: str) -> str:
    contenders = [score for score in ranked if not score.group.pooled]
    ceilings = [score for score in ranked if score.group.pooled]
    if not contenders:
        return f"{opening} training on all the data in one place reaches {percent(ceilings[0].point)}"
    name = network_title(contenders[0].group)
    which = f"on the network that clients train{f' ({name})' if name else ''}"
    clauses = [f"{opening}, {which}, {_first(contenders)}"]
    if ceilings:
        clauses.append(f"training on all the data in one place, the ceiling, reaches {percent(ceilings[0].point)}")
    return "; ".join(clauses)


def _first(contenders: Sequence[_Score]) -> str:
    (group, point), *others = contenders
    correct = "of the test images labelled correctly"
    if not others:
        return f"{group.label} reaches {percent(point)} {correct}, with no other method beside it"
    second, below = others[0]
    if not differ(point, below):
        also = [other.group.label for other in others[1:] if not differ(point, other.point)]
        text = f"{group.label} and {second.label} are level at {percent(point)} and {percent(below)} {correct}"
        return f"{text}, and {_few(also)} with {group.label}" if also else text
    unsure = ", though one seed tells no spread" if point.spread is None or below.spread is None else ""
    return (
        f"{group.label} leads with {percent(point)} {correct}, {points(point.mean - below.mean)} above {second.label}"
        f"{unsure}"
    )


def _few(names: list[str]) -> str:
    """``so is a``; of many, some: ``so are a, b, c and 4 others``."""
    told = names if len(names) <= _NAMED + 1 else [*names[:_NAMED], f"{len(names) - _NAMED} others"]
    return f"so {'is' if len(names) == 1 else 'are'} {listed(told)}"


def _others(groups: Sequence[Group], alike: Sequence[Group], last: int) -> Iterator[str]:
    """Every other network by name, without a ranking: one name may stand for networks of several sizes."""
    # PriorOnly's stand in the sentence about it
    told = any(group.method == "feddgm" for group in groups)
    found: dict[str, list[str]] = {}
    for group in groups:
        if told and group.method == "prioronly":
            continue
        for model in group.models:
            mine = model == client_model(group)
            if model in HEADS or (mine and group in alike) or last not in (curve := group.curve(model)):
                continue
            name = (network_title(group) or model) if mine else model
            found.setdefault(name, []).append(f"{percent(curve[last].mean)} with {group.label}")
    if sum(map(len, found.values())) > _MOST:
        yield f"other models ({listed(list(found))}) stand in the table"
    elif found:
        yield "other models: " + "; ".join(f"{name} reaches {listed(texts)}" for name, texts in found.items())


def _alone(groups: Sequence[Group], last: int) -> Iterator[str]:
    """PriorOnly against each FedDGM, network by network: a big network's lead must not hide a small one's draw."""
    clauses: list[str] = []
    known = ""
    for group in groups:
        prior = _control(group, groups) if group.method == "feddgm" else None
        found = _against(group, prior, last) if prior is not None else {}
        if prior is None or not found:
            continue
        subject = "it" if prior.label == known else f"the generator alone ({prior.label})"
        known = prior.label
        told = "; ".join(f"{words} on {listed(found[words])}" for words in _COMPARED if words in found)
        clauses.append(f"beside {group.label}, {subject} {told}")
    if clauses:
        yield "; ".join(clauses)


def _against(group: Group, prior: Group, last: int) -> dict[str, list[str]]:
    """Networks and figures by how the generator alone does beside ``group``."""
    found: dict[str, list[str]] = {}
    for model in group.models:
        ours, theirs = group.curve(model), prior.curve(model) if model in prior.models else {}
        if last in ours and last in theirs:
            words = _compared(theirs[last], ours[last])
            # level is a matter of the spread, so show it
            one, other = (percent(p if words == LEVEL else p.mean) for p in (theirs[last], ours[last]))
            found.setdefault(words, []).append(f"{model}: {one} against {other}")
    return found


def _control(group: Group, groups: Sequence[Group]) -> Group | None:
    """The PriorOnly of ``group``'s generator, or the first of any."""
    controls = [other for other in groups if other.method == "prioronly"]
    generator = table(group, "algorithm").get("generator")
    return next(
        (other for other in controls if table(other, "algorithm").get("generator") == generator),
        controls[0] if controls else None,
    )


def _compared(alone: Point, distilled: Point) -> str:
    gain = alone.mean - distilled.mean
    if not differ(alone, distilled):
        return LEVEL
    if gain > 0:
        return BETTER
    return ALMOST if gain >= -NEAR - ROUNDING else LESS
