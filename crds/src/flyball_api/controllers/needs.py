"""What a controller type needs of the rest of a policy; without it it could not control at all, ever."""

from __future__ import annotations

from typing import Any, Final

from flyball_api.common import Rule, field_value

PROFILED: Final = {
    "VoltanaLLM": ("voltana_llm", "voltanaLLM"),
    "ThrottLLeM": ("throttll_em", "throttLLeM"),
    "PALS": ("pals", "pals"),
}
"""Types that choose by a profile: the attribute of `Controller` that names it, and that attribute on the wire."""

_TOKEN_LATENCIES: Final = ("timeToFirstToken", "interTokenLatency")
_LATENCIES: Final = {
    "Flyball": _TOKEN_LATENCIES,
    "VoltanaLLM": _TOKEN_LATENCIES,
    "ThrottLLeM": (*_TOKEN_LATENCIES, "endToEnd"),
}
"""Types that hold latencies: those of the slo of which at least one must be there."""


def _lacks_latency(spec: Any) -> bool:
    slo, wanted = spec.slo, _LATENCIES.get(spec.controller.type)
    if wanted is None:
        return False
    given = {
        "timeToFirstToken": slo and slo.time_to_first_token,
        "interTokenLatency": slo and slo.inter_token_latency,
        "endToEnd": slo and slo.end_to_end,
    }
    return not any(given[name] for name in wanted)


def _latency_in_cel(kind: str) -> str:
    given = " || ".join(f"has(self.slo.{name})" for name in _LATENCIES[kind])
    return f"self.controller.type != '{kind}' || (has(self.slo) && ({given}))"


def _lacks_profile(spec: Any) -> bool:
    if spec.controller.type not in PROFILED:
        return False
    parameters = getattr(spec.controller, PROFILED[spec.controller.type][0])
    return parameters is None or parameters.profile is None


def _profile_in_cel(kind: str) -> str:
    field = f"self.controller.{PROFILED[kind][1]}"
    return f"self.controller.type != '{kind}' || (has({field}) && has({field}.profile))"


def _all(conditions: list[str]) -> str:
    return " && ".join(f"({condition})" for condition in conditions)


NEEDS: Final = (
    Rule(
        cel=_all([_latency_in_cel(kind) for kind in _LATENCIES]),
        holds=lambda spec: not _lacks_latency(spec),
        message="controller type %s holds latencies and the slo names none that it can hold: give"
        " spec.slo.timeToFirstToken or spec.slo.interTokenLatency",
        values=(field_value("controller.type"),),
    ),
    Rule(
        cel=_all([_profile_in_cel(kind) for kind in PROFILED]),
        holds=lambda spec: not _lacks_profile(spec),
        message="controller type %s chooses by a profile and none is named: make one with flyball profile and give its"
        " name as profile in the parameters of that type",
        values=(field_value("controller.type"),),
    ),
    Rule(
        cel="self.controller.type != 'PALS' || has(self.powerBudget)",
        holds=lambda spec: spec.controller.type != "PALS" or spec.power_budget is not None,
        message="controller type %s sets power caps, which nobody touches without a budget: give"
        " spec.powerBudget.watts, or take another type",
        values=(field_value("controller.type"),),
    ),
)
"""Rules of `spec`."""
