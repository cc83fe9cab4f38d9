"""What a replay comes to, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from flyball_sim.replay.bands import Band, Pair
from flyball_sim.replay.measures import Measures
from flyball_sim.replay.profiles import named
from flyball_sim.replay.question import Question
from flyball_sim.replay.record import Record
from flyball_sim.replay.wording import MINUS, count, joules, percent, seconds

SMALL_SAVING = 0.005
"""Below half a percent a policy is said to change nothing."""
_WRONG = {("Degraded", "True"), ("Accepted", "False"), ("BudgetRespected", "False"), ("Ready", "False")}


def share_text(share: float) -> str:
    """A saving in whole percent, in tenths below ten."""
    value = abs(100 * share)
    text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
    zero = float(text) == 0
    return f"{MINUS if share < 0 and not zero else ''}{'0' if zero else text.removesuffix('.0')}"


def band_text(band: Band) -> str:
    """`23 % (19 to 26 %)`."""
    if band.low is None or band.high is None:
        return f"{share_text(band.nominal)} %"
    return f"{share_text(band.nominal)} % ({share_text(band.low)} to {share_text(band.high)} %)"


def headline(saving: Band, nominal: Pair) -> str:
    """One sentence: what it saves, and what it does to the SLO."""
    return f"{_energy(saving)} {_slo(nominal.observe, nominal.enforce, saves=saving.nominal > SMALL_SAVING)}."


def _energy(saving: Band) -> str:
    draws = f" over {count(saving.draws, 'parameter draw')}" if saving.low is not None else ""
    low, high = (saving.nominal if bound is None else bound for bound in (saving.low, saving.high))
    if max(abs(low), abs(high)) < SMALL_SAVING:
        return "This policy changes GPU energy by less than half a percent"
    if low > 0:
        span = f" ({share_text(low)} to {share_text(high)} %{draws})" if draws else ""
        return f"This policy saves {share_text(saving.nominal)} % of GPU energy{span}"
    if high < 0:
        span = f" ({share_text(-high)} to {share_text(-low)} %{draws})" if draws else ""
        return f"This policy costs {share_text(-saving.nominal)} % more GPU energy{span}"
    return f"This policy may save GPU energy or cost more: {share_text(low)} to {share_text(high)} %{draws}"


def _slo(observe: Measures, enforce: Measures, *, saves: bool) -> str:
    held, today = percent(enforce.attainment), percent(observe.attainment)
    if enforce.keeps_slo:
        return f"and keeps the SLO: {held} of requests hold it"
    if observe.keeps_slo:
        return f"{'but' if saves else 'and'} breaks the SLO: {held} of requests hold it, {today} today"
    return f"and the SLO is missed with and without it: {held} of requests hold it, {today} today"


def certainty(pairs: Sequence[Pair]) -> str:
    """In how many draws the verdict is the same, for the line below the headline."""
    if not pairs:
        return "No band: --draws 0 leaves out how sure this is."
    saves = sum(pair.saving > 0 for pair in pairs)
    keeps = sum(pair.enforce.keeps_slo for pair in pairs)
    return f"It saves in {saves} of {count(len(pairs), 'draw')} and keeps the SLO in {keeps}."


def notes(question: Question, observe: Record, enforce: Record, nominal: Pair) -> list[str]:
    """What a reader should know before believing the headline, most important first."""
    return [
        *_breaches(enforce),
        *_wrong(enforce),
        *_too_small(nominal),
        *_unserved(nominal),
        *_status_misses(observe, enforce),
        *_ungoverned(enforce),
        *_budgets(question),
        *_clocks(question),
        *_faults(question),
        *_assumptions(question),
        *_overshoot(nominal.enforce),
    ]


def _breaches(record: Record) -> list[str]:
    return [
        f"Budget breach at {seconds(breach.seconds)}: the caps of {breach.policy!r} added up to "
        f"{breach.excess_watts:.0f} W more than its budget for {breach.duration_seconds:.1f} s. This must not happen."
        for breach in record.breaches[:3]
    ]


def _wrong(record: Record) -> list[str]:
    """Verdicts that are not as they should be and lasted to the end, in the operator's own words."""
    last = {(statement.policy, statement.type): statement for statement in record.statements}
    found = {
        f"{statement.policy}: {statement.type} is {statement.status} from {seconds(statement.seconds)} to the end: "
        f"{statement.message}"
        for statement in last.values()
        if (statement.type, statement.status) in _WRONG
    }
    return sorted(found)


def _too_small(nominal: Pair) -> list[str]:
    if nominal.observe.keeps_slo:
        return []
    return ["The SLO is missed without the policy too: the cluster is too small for this trace, or the SLO too tight."]


def _unserved(nominal: Pair) -> list[str]:
    texts = []
    for name, word in (("rejected", "rejected"), ("lost", "lost"), ("unfinished", "not finished by the end")):
        before, after = nominal.observe.outcomes[name], nominal.enforce.outcomes[name]
        if before or after:
            texts.append(f"{count(after, 'request')} {word} under the policy, {before:,} today; each counts as a miss.")
    return texts


def _status_misses(observe: Record, enforce: Record) -> list[str]:
    """Where the policy's status judges otherwise than the requests do, a reader will ask why."""
    before, after = slo_missed_seconds(observe), slo_missed_seconds(enforce)
    if not after:
        return []
    text = (
        f"The policy's status would say SLOMet=False for {seconds(after)} ({seconds(before)} today): there each "
        "latency is judged by itself over the last minutes, from the engines' histograms."
    )
    return [text]


def slo_missed_seconds(record: Record) -> float:
    """For how long some policy's status said SLOMet=False."""
    total, since = 0.0, dict[str, float]()
    for statement in record.statements:
        if statement.type != "SLOMet":
            continue
        total += statement.seconds - since.pop(statement.policy, statement.seconds)
        if statement.status == "False":
            since[statement.policy] = statement.seconds
    return total + sum(record.end_seconds - begin for begin in since.values())


def _ungoverned(record: Record) -> list[str]:
    strangers = int((record.requests.judge < 0).sum())
    if not strangers or not len(record.requests):
        return []
    share = strangers / len(record.requests)
    return [f"{percent(share)} of requests were served by engines that no policy selects, or by none."]


def _budgets(question: Question) -> list[str]:
    return [
        f"The budget of {policy.name!r}, {policy.spec.power_budget.watts:,} W, is more than its GPUs can draw here: it "
        "never binds."
        for policy, ceiling in zip(question.policies, question.view.ceilings_watts, strict=True)
        if policy.spec.power_budget is not None and policy.spec.power_budget.watts >= ceiling > 0
    ]


def _clocks(question: Question) -> list[str]:
    texts = []
    for policy in question.policies:
        fixed = policy.spec.controller.fixed
        if question.view.assumed and fixed is not None and all(clock.role != "unified" for clock in fixed.clocks):
            texts.append(
                f"{policy.name!r} names no clock for role unified, and the assumed engines are unified: no clock is "
                "locked. Give --cluster with prefill and decode engines."
            )
    return texts


def _faults(question: Question) -> list[str]:
    return [f"Injected into both runs: {'; '.join(question.faults)}."] if question.faults else []


def _assumptions(question: Question) -> list[str]:
    texts = []
    if question.view.assumed:
        texts.append(f"No --cluster was given, so one was sized for this trace: {question.view.summary}.")
    for policy, objective in zip(question.policies, question.objectives, strict=True):
        if policy.spec.slo is None and objective.source != "--slo":
            texts.append(f"{policy.name!r} names no slo: its requests are judged by {objective.bounds()}.")
    for index, kind, name in named(question.policies):
        if name in question.profiles:
            texts.append(
                f"Profile {name!r} of {question.policies[index].name!r} ({kind}) was made of the simulated engine, with"
                " errors of measuring but at the model's nominal parameters."
            )
    if question.view.modelled:
        names = ", ".join(question.view.modelled)
        texts.append(f"{names}: modelled as a whole, for no public rows of power or latency exist for it.")
    return texts


def _overshoot(enforce: Measures) -> list[str]:
    if enforce.overshoot_seconds < 0.05:
        return []
    text = (
        f"Cards drew more than their cap for {enforce.overshoot_seconds:.1f} GPU-seconds "
        f"({joules(enforce.overshoot_joules)} above it): a cap acts with a delay, and not below the lowest clock."
    )
    return [text]
