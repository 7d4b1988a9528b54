"""Values that options give as YAML."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def yaml_value(option: str, text: str) -> Any:
    """Return the value of the YAML *text* that *option* gives. Raises ``ValueError``."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ValueError(f"{option} {text}: not a YAML value ({reason}); write e.g. lpt or '{{name: joint}}'") from None
