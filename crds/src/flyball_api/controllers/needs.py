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

_TOKEN_BY_TOKEN: Final = ("Flyball", "VoltanaLLM")
"""Types that hold the time to the first token, or that between tokens, or both."""


def _lacks_latency(spec: Any) -> bool:
    slo = spec.slo
    given = slo is not None and (slo.time_to_first_token or slo.inter_token_latency)
    return spec.controller.type in _TOKEN_BY_TOKEN and not given


def _lacks_deadline(spec: Any) -> bool:
    slo = spec.slo
    given = slo is not None and (slo.end_to_end or (slo.time_to_first_token and slo.inter_token_latency))
    return spec.controller.type == "ThrottLLeM" and not given


def _lacks_profile(spec: Any) -> bool:
    if spec.controller.type not in PROFILED:
        return False
    parameters = getattr(spec.controller, PROFILED[spec.controller.type][0])
    return parameters is None or parameters.profile is None


def _profile_in_cel(kind: str) -> str:
    field = f"self.controller.{PROFILED[kind][1]}"
    return f"self.controller.type != '{kind}' || (has({field}) && has({field}.profile))"


NEEDS: Final = (
    Rule(
        cel=f"!(self.controller.type in {list(_TOKEN_BY_TOKEN)})"
        " || (has(self.slo) && (has(self.slo.timeToFirstToken) || has(self.slo.interTokenLatency)))",
        holds=lambda spec: not _lacks_latency(spec),
        message="controller type %s holds latencies of tokens and the slo names none: give spec.slo.timeToFirstToken or"
        " spec.slo.interTokenLatency",
        values=(field_value("controller.type"),),
    ),
    Rule(
        cel="self.controller.type != 'ThrottLLeM' || (has(self.slo) && (has(self.slo.endToEnd)"
        " || (has(self.slo.timeToFirstToken) && has(self.slo.interTokenLatency))))",
        holds=lambda spec: not _lacks_deadline(spec),
        message="controller type %s holds a deadline of every request and the slo gives none: give spec.slo.endToEnd,"
        " or both timeToFirstToken and interTokenLatency",
        values=(field_value("controller.type"),),
    ),
    Rule(
        cel=" && ".join(f"({_profile_in_cel(kind)})" for kind in PROFILED),
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
