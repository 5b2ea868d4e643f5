"""Checks of settings: every message gives name, rule, value and remedy.

Stages call these before anything expensive starts. A stage's dataclass fields are its schema.
"""

import dataclasses
import difflib
import functools
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

# "true" casts the weights of a text model when they are loaded, "mixed" the inputs of operations.
# Those of models without text.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]


def require(ok: bool, name: str, rule: str, value: object, remedy: str = "") -> None:
    """Raises ValueError "<name> must be <rule>, got <value>; <remedy>" unless `ok`."""
    if not ok:
        raise ValueError(
            f"{name} must be {rule}, got {value!r}" + (f"; {remedy}" if remedy else "")
        )


def build(config: Any, **arguments: Any) -> Any:
    """The object of a config with `_target_`; inner configs arrive as plain dicts and lists.

    diffusers and Lightning checkpoints cannot store OmegaConf containers.
    """
    return instantiate(config, _convert_="all", **arguments)


def tried(where: str, config: Mapping[str, Any]) -> Any:
    """The object of a config, only to be inspected: equal configs return the same object.

    The points of a sweep share a few networks, and building them takes most of the time of a plan.
    Raises ValueError with the message of the object's own check.
    """
    try:
        return _tried(json.dumps(config))
    except InstantiationException as error:
        raise ValueError(f"{where} cannot be built: {error.__cause__ or error}") from None


@functools.cache
def _tried(config: str) -> Any:
    return build(json.loads(config))


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A hint: the closest of `known`, and all of them."""
    known = sorted(map(str, known))
    if not known:
        return "there are no choices"
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def require_known(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError, with the closest of `known`, unless `value` is one of them."""
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} does not accept {value!r}; {did_you_mean(value, known)}")


def bind(where: str, target: str, arguments: Mapping[str, Any], partial: bool = False) -> None:
    """Checks that `arguments` fit the signature of `target`, and so for every nested `_target_`."""
    bind_signature(where, target, arguments, partial)
    for name, value in arguments.items():
        bind_nested(f"{where}.{name}", value)


def bind_signature(
    where: str,
    target: str,
    arguments: Mapping[str, Any],
    partial: bool = False,
    owner: str = "",
) -> None:
    """Checks that `arguments` fit the signature of `target`.

    Errors name the setting as on the command line (`where.argument`) and the closest argument.
    partial: the caller supplies the remaining positional arguments (`_partial_: true`). owner: the
    name of the target in errors, such as `dpm=tiny`.
    """
    owner = owner or target
    try:
        function = get_object(target)
    except Exception as error:
        raise ValueError(
            f"{where}._target_ names {target!r}, which cannot be imported: {error}"
        ) from None
    parameters = _parameters(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in arguments:
        if name not in known and not takes_any:
            raise ValueError(
                f"{where}.{name} is not a setting of {owner}; {did_you_mean(name, known)}"
            )
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty]
    missing = [n for n in missing if n not in arguments]
    if missing and not partial:
        raise ValueError(f"{where}.{missing[0]} is required by {owner} and is not set")


def bind_nested(where: str, value: Any) -> None:
    """Binds every mapping with a `_target_` inside `value`."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            arguments = {k: v for k, v in value.items() if not k.startswith("_")}
            bind(where, value["_target_"], arguments, bool(value.get("_partial_")))
        else:
            for name, inner in value.items():
                bind_nested(f"{where}.{name}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            bind_nested(f"{where}.{i}", inner)


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    # inspect follows functools.wraps, with which diffusers decorates constructors.
    if inspect.isclass(function):
        if function.__init__ is object.__init__:
            return {}  # it takes nothing, although its signature has *args and **kwargs
        parameters = dict(inspect.signature(function.__init__).parameters)
        parameters.pop("self", None)
        return parameters
    return dict(inspect.signature(function).parameters)


def check_field_types(where: str, owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, with whole floats as int for int fields; ValueError on a wrong type.

    Supports the types of settings: int, float, str, bool, dict, list, Literal, None and unions of
    them; a dataclass, given as a mapping of its settings; and a dataclass whose subclasses are
    strategies, given as the `name` of one, or as a mapping with that name.
    """
    hints = _hints(owner)
    return {name: _fit(f"{where}.{name}", hints[name], value) for name, value in values.items()}


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def written_out(settings: Mapping[str, Any], built: Any) -> dict[str, Any]:
    """`settings` with every dataclass among those of `built` as a mapping of all its settings."""
    values = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    parts = [name for name, value in values.items() if dataclasses.is_dataclass(value)]
    return {**settings, **{name: dataclasses.asdict(values[name]) for name in parts}}


def _strategy(where: str, kinds: Iterable[Any], value: Any) -> Any:
    """The object of the strategy that `value` names; each of `kinds` has a setting `name`."""
    known = {kind.name: kind for kind in kinds if hasattr(kind, "name")}  # others are abstract
    own = {"name": value} if isinstance(value, str) else value
    remedy = f"known: {', '.join(known)}"
    require(
        isinstance(own, Mapping) and "name" in own, where, "a name or {name: ...}", value, remedy
    )
    name = own["name"]
    require_known(where, name, known)
    settings = {kind: [field.name for field in dataclasses.fields(known[kind])] for kind in known}
    for setting in own:
        if setting not in settings[name]:
            others = [f"{where}={other}" for other in known if setting in settings[other]]
            has = [f"{where}.{other}" for other in settings[name] if other != "name"]
            raise ValueError(
                f"{where}.{setting} is not a setting of {where}={name}, which has "
                f"{', '.join(has) or 'none'}" + (f"; {', '.join(others)} has it" if others else "")
            )
    return known[name](**check_field_types(where, known[name], own))


def _descendants(kind: Any) -> list[Any]:
    """The classes that derive from `kind`, each before those that derive from it."""
    own = [[child, *_descendants(child)] for child in kind.__subclasses__()]
    return list(dict.fromkeys(each for family in own for each in family))


def _part(where: str, kind: Any, value: Any) -> Any:
    """The object of the dataclass `kind` with the settings `value`."""
    require(isinstance(value, Mapping), where, "a mapping, as {a: 1}", value)
    bind_signature(where, f"{kind.__module__}.{kind.__qualname__}", value)
    return kind(**check_field_types(where, kind, value))


def _fit(where: str, hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        part: Any = hint
        if isinstance(value, part):
            return value
        strategies = _descendants(part)
        return _strategy(where, strategies, value) if strategies else _part(where, part, value)
    if origin is typing.Literal:
        # 1 == 1.0 == True: return the choice itself, and accept no bool as a number.
        for choice in typing.get_args(hint):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ValueError(
            f"{where} does not accept {value!r}; {did_you_mean(value, typing.get_args(hint))}"
        )
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        of_its_kind = (o for o in options if type(value) is (typing.get_origin(o) or o))
        option = next(of_its_kind, options[0])
        choices = typing.get_args(option) if typing.get_origin(option) is typing.Literal else ()
        if choices and int in options and value not in choices:
            known = did_you_mean(value, [*choices, _name(int)])
            raise ValueError(f"{where} does not accept {value!r}; {known}")
        return _fit(where, option, value)
    kind = origin or hint
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    # A bool is an int in Python, but `num_images=true` is an error.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_name(hint)}, got {value!r}")
    return value


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    names |= {list: "a list, as [a, b]", dict: "a mapping, as {a: 1}"}
    return names.get(hint, str(hint))
