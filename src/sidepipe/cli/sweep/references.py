"""References within configs, such as `${data.size}`, for sweeps of thousands of points.

OmegaConf parses each reference again for each point, which takes ten times as long as the plan.
"""

import re
from typing import Any

REFERENCE = re.compile(r"\$\{([\w.]+)\}")
# A setting of another stage that may lack it, and the number in its place.
SELECTED = re.compile(r"\$\{oc\.select:([\w.]+),([\d.]+)\}")


class Unsupported(ValueError):
    """Only OmegaConf can fill in this config: it calls a resolver, or a name is relative."""


def filled(raw: Any, root: Any = None) -> Any:
    """The plain config `raw` with the values of its references; raises Unsupported.

    root: the config that references name, `raw` by default.
    """
    root = raw if root is None else root
    if isinstance(raw, dict):
        return {name: filled(value, root) for name, value in raw.items()}
    if isinstance(raw, list):
        return [filled(value, root) for value in raw]
    if not isinstance(raw, str) or "${" not in raw:
        return raw
    if whole := REFERENCE.fullmatch(raw):
        return _value(whole[1], root)
    if found := SELECTED.fullmatch(raw):
        return _selected(found[1], found[2], root)
    text = REFERENCE.sub(lambda found: _text(_value(found[1], root)), raw)
    if "${" in text:
        raise Unsupported(raw)
    return text


def _value(path: str, root: Any) -> Any:
    value = root
    for name in path.split("."):
        if isinstance(value, str):
            value = filled(value, root)
        if not isinstance(value, dict) or name not in value:
            raise Unsupported(path)
        value = value[name]
    return filled(value, root)


def _selected(path: str, default: str, root: Any) -> Any:
    owner, _, name = path.rpartition(".")
    settings = _value(owner, root)
    if isinstance(settings, dict) and name not in settings:
        return float(default) if "." in default else int(default)
    value = _value(path, root)
    if value is None:
        raise Unsupported(path)
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unsupported(value)
    return str(value)
