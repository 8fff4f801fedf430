"""Probes of legality: an evaluator is run on its own path, again and again on changed text, and what it committed is
compared (the tests of shared rules C1 to C4, issue #1017 of the challenge; what each rules out is in golf/audit.py).

N: tokens of the stream; k: a place in it that is probed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch

from golf.evals.book import NOTHING
from golf.evals.case import NOISE, TOLERANCE, Case, Traced, apart

PASS, FAIL, UNKNOWN = "PASS", "FAIL", "cannot tell"
MEMORY = 0.5  # of the BPB on other held-out text: a score this far below it was learnt by heart


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe says. rule: what it is about, with its source."""

    probe: str
    verdict: str
    text: str
    rule: str


def repeat(case: Case) -> Finding:
    """The same text scores the same a second time: else no other probe means anything."""
    rule = "a score can be had again, and so be probed (#1017)"
    if case.noise > NOISE:
        return Finding("repeat", FAIL, f"the same text moves a score by {case.noise:.2g} nats: nothing to audit", rule)
    return Finding("repeat", PASS, f"the same text moves scores by {case.noise:.1g} nats at most", rule)


def future(case: Case) -> Finding:
    """C1: other text from k on moves no score before k, nor the distribution at k."""
    rule = "C1: scores depend on the past only (#1017; classes 1, 3, 5, 6, 11, 14)"
    worst, where = 0.0, ""
    for name, k in case.places.items():
        past_N = case.past(k)
        keep = past_N.copy()
        keep[0] = True
        found = case.trace(case.changed(~keep), frozenset([k]))
        moved = _moved(case, found, past_N, [k])
        if moved > worst:
            worst, where = moved, name
    seen = f"{len(case.places)} places"
    return _verdict("future", worst, where, seen, case, rule, "text after a target moves what was scored before it")


def cut(case: Case) -> Finding:
    """C1: where a text ends moves no score before that, nor does what is scored beside it.

    All that is not graded yet when k is graded is taken away, of this text and of the others, and a BOS stands at k:
    the probes that change tokens leave lengths and BOS as they are. What an evaluator may know of the whole (Declared)
    stays.
    """
    rule = "C1: neither the end of a text nor its neighbours are known (#1017; classes 1, 3, 6)"
    worst, where = 0.0, ""
    for name, k in case.places.items():
        stream, place_N = case.cut(k)
        found = case.trace(stream, frozenset([int(place_N[k])]), case.declared)
        moved = _moved(case, moved_to(found, place_N, k), case.past(k), [k])
        if moved > worst:
            worst, where = moved, name
    seen = f"{len(case.places)} places"
    return _verdict("cut", worst, where, seen, case, rule, "the end of a text, or others beside it, move its scores")


def moved_to(found: Traced, place_N: np.ndarray, k: int) -> Traced:
    """Return a pass over a cut stream with its scores where they stand in the whole one."""
    nll_N = np.full(len(place_N), np.nan)
    there = place_N != NOTHING
    nll_N[there] = found.nll_N[place_N[there]]
    found.nll_N, found.logp = nll_N, {k: found.logp[int(place_N[k])]} if int(place_N[k]) in found.logp else {}
    return found


def target(case: Case) -> Finding:
    """C1 and C2: another token at k moves no score before k, nor the distribution that k is scored by.

    Tried are tokens that would open a gate, three kinds at each place (candidate), there and at all that can be probed
    with it.
    """
    rule = "C1, C2: a distribution is fixed before its target is seen (#1017, #659, #1967; classes 2, 7, 8, 9)"
    worst, where = 0.0, ""
    probed: set[int] = set()
    for number, (name, k) in enumerate(case.places.items()):
        for kind in (LIKELIEST, *(KINDS[(2 * number + i) % len(KINDS)] for i in range(2))):
            stream = case.stream.copy()
            for place in case.together(k):
                stream[place] = candidate(case, place, kind)
            changed = [int(place) for place in np.flatnonzero(stream != case.stream)]
            if not changed:
                continue
            probed.update(changed)
            past_N = np.logical_and.reduce([case.past(place) for place in changed])
            moved = _moved(case, case.trace(stream, frozenset(changed)), past_N, changed)
            if moved > worst:
                worst, where = moved, f"{name}, {kind}"
    seen = f"{len(probed):,} of {case.base.targets:,} targets"
    return _verdict("target", worst, where, seen, case, rule, "a target moves the distribution that scores it")


LIKELIEST = "the likeliest token"
BEGINNING = "a document's start"
KINDS = ("the next likeliest", "the token before", "a word's start", "no word's start", "a rare token", BEGINNING)


def candidate(case: Case, k: int, kind: str) -> int:
    """A token of this kind to put at k, other than its own; its own where there is none of the kind. BOS is of the kind
    of its own alone, and only in one stream: documents begin with it."""
    own = int(case.stream[k])
    tokens, counts = np.unique(case.stream, return_counts=True)
    starts = case.counter.mark_V.cpu().numpy()[tokens.astype(np.int64)]
    rising = case.base.logp[k].argsort(descending=True)[:4].tolist() if k in case.base.logp else []
    likely = [token for token in rising if token not in (own, case.bos_id)]
    found = {
        LIKELIEST: likely[:1],
        "the next likeliest": likely[1:2],
        "the token before": case.stream[k - 1 : k],
        "a word's start": tokens[starts],
        "no word's start": tokens[~starts],
        "a rare token": tokens[counts == counts.min()],
        BEGINNING: np.array([] if case.evaluator.alone else [case.bos_id]),
    }[kind]
    left = [int(token) for token in found if token != own and (token != case.bos_id or kind == BEGINNING)]
    return left[k % len(left)] if left else own


def _moved(case: Case, found: Traced, past_N: np.ndarray, places: Sequence[int]) -> float:
    """The largest change of a score in the past or of a probability at these places, nats (of those above e^-20);
    infinite where something is no number."""
    worst = apart(case.base, found, past_N)
    for k in places:
        if k in case.base.logp and k in found.logp:
            one, two = (trace.logp[k].double().clamp_min(-20) for trace in (case.base, found))
            worst = max(worst, float((one - two).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()))
    return worst


def _verdict(probe: str, worst: float, where: str, seen: str, case: Case, rule: str, fault: str) -> Finding:
    if case.noise > case.tolerance:
        return Finding(probe, UNKNOWN, "the same text moves scores as well: see repeat", rule)
    if worst > case.tolerance:
        return Finding(probe, FAIL, f"{fault}: by {worst:.2g} nats ({where}){case.note}", rule)
    return Finding(probe, PASS, f"{seen}, at most {worst:.1g} nats{case.note}", rule)


def normalisation(case: Case) -> Finding:
    """C2: every distribution that was committed sums to one over the whole vocabulary."""
    rule = "C2: a whole, normalised distribution over the tokens (#1017, #886; classes 2, 8, 10)"
    excess = case.base.excess
    if not isfinite(excess):
        return Finding("normalisation", FAIL, "some probabilities are no numbers", rule)
    if excess > TOLERANCE:
        return Finding("normalisation", FAIL, f"probabilities sum to {1 + excess:.4g} or as far from 1", rule)
    return Finding("normalisation", PASS, f"all {case.base.targets:,} sum to 1 within {excess:.1g}", rule)


def coverage(case: Case) -> Finding:
    """C4: each target exactly once, left to right within each text."""
    rule = "C4: every target once, in one pass, in order (#846, #959, #402; classes 4, 18, 23)"
    counts = case.base.graded_N[1:]
    missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
    if missing or twice:
        return Finding("coverage", FAIL, f"{missing:,} targets never graded, {twice:,} more than once", rule)
    order = np.concatenate(case.base.order)
    document = case.text_of[order]
    back = sum(bool((np.diff(order[document == name]) < 0).any()) for name in np.unique(document))
    if back:
        return Finding("coverage", FAIL, f"text is not graded from left to right ({back} documents)", rule)
    return Finding("coverage", PASS, f"{len(counts):,} targets, each once, in order", rule)


def bytes_counted(case: Case) -> Finding:
    """The denominator is the UTF-8 length of the decoded text."""
    rule = "bytes are those of the text (#1545, #1576, #1271; class 17)"
    if case.bytes_of is None:
        return Finding("bytes", UNKNOWN, "the tokenizer is not there to decode with", rule)
    if (case.base.graded_N[1:] != 1).any():
        return Finding("bytes", UNKNOWN, "not every target was graded once: see coverage", rule)
    counted, decoded = case.base.sums()[2], case.bytes_of(case.stream)
    if counted != decoded:
        return Finding("bytes", FAIL, f"{counted:,} counted, {decoded:,} in the decoded text", rule)
    return Finding("bytes", PASS, f"{decoded:,} bytes in the decoded text and by the rule", rule)


def files(case: Case) -> Finding:
    """No training text is opened while scores are made."""
    rule = "no training data at evaluation (#593, #609; class 13)"
    _ = case.base
    opened = sorted({split for phase in case.ledger.phases.values() for split in phase["opened"]})  # threads' as well
    if "train" in opened:
        return Finding("files", FAIL, "training shards were opened during evaluation", rule)
    return Finding("files", PASS, f"opened during evaluation: {', '.join(opened) or 'nothing'}", rule)


def memory(case: Case) -> Finding:
    """The scored text is not far better known than other text of its kind."""
    rule = "no validation text in the artifact (#168, #262; class 15)"
    if case.other is None or len(case.other) < 2:
        return Finding("memory", UNKNOWN, "there is no other held-out text to compare with", rule)
    here, there = (book.sums() for book in (case.base, case.trace(case.other)))
    ratio = (here[0] / max(1, here[2])) / (there[0] / max(1, there[2]))
    if not ratio >= MEMORY:  # no number is no pass
        return Finding("memory", FAIL, f"{ratio:.0%} of the bits of other held-out text: learnt by heart", rule)
    return Finding("memory", PASS, f"{ratio:.0%} of the bits of other held-out text", rule)


PROBES: dict[str, Callable[[Case], Finding]] = {
    "repeat": repeat,
    "future": future,
    "cut": cut,
    "target": target,
    "normalisation": normalisation,
    "coverage": coverage,
    "bytes": bytes_counted,
    "files": files,
    "memory": memory,
}


def probe(case: Case) -> Iterator[Finding]:
    """All of them, cheapest first where it matters: they share the passes over the unchanged text."""
    with torch.no_grad():
        for run in PROBES.values():
            yield run(case)
