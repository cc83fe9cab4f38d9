"""What controllers have in common that choose by what was measured of an engine beforehand."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from flyball_api.common import CEL_RULES, ApiModel, cel_rule

_PLAIN: Final = "[A-Za-z0-9][-._A-Za-z0-9]*"
# It becomes a file's name: with a slash in it, it could name any file.
_REFUSAL: Final = (
    'the profile "%s" cannot be a key of a ConfigMap: use letters, digits, -, _ and ., a letter or digit first'
)


def _is_plain(name: str) -> str:
    if not re.fullmatch(_PLAIN, name):
        raise ValueError(_REFUSAL % name)
    return name


ProfileName = Annotated[
    str,
    Field(
        max_length=240,
        json_schema_extra={CEL_RULES: [cel_rule(f"self.matches('^{_PLAIN}$')", _REFUSAL, "self")]},
    ),
    AfterValidator(_is_plain),
]
"""Name of a profile: a key of the ConfigMap, without its `.json`."""


class Profiled(ApiModel):
    """Parameters of a controller that needs a profile."""

    # Required of a policy (`needs`) and not here: a simulated world makes its own profile and has no name for it.
    profile: ProfileName | None = Field(
        default=None,
        description="Name of the profile that `flyball profile` made of this engine: its key in ConfigMap"
        " flyball-profiles, without .json.",
    )
