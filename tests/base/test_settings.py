from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from sidepipe.base.settings import (
    bind,
    bind_nested,
    build,
    check_field_types,
    did_you_mean,
    require,
    require_known,
    tried,
    written_out,
)

ENCODER = "torch.nn.Linear"  # Linear(in_features, out_features, bias=True, device=None, dtype=None)
LINEAR = {"_target_": ENCODER, "in_features": 2, "out_features": 3}


def refused(match):
    """Expects a ValueError whose text matches."""
    return pytest.raises(ValueError, match=match)


# require, require_known


def test_a_refusal_says_name_rule_value_and_remedy():
    with refused(r"^data\.size must be >= 4 pixels, got 2; set it higher$"):
        require(False, "data.size", ">= 4 pixels", 2, "set it higher")
    with refused(r"^name must be short, got 'long'$"):
        require(False, "name", "short", "long")
    require(True, "name", "short", "long")


def test_an_unknown_name_is_refused_with_the_closest_and_all_that_are_known():
    with refused(
        r"^stage does not accept 'evaluat'; did you mean 'evaluate'\? known: dpm, evaluate, extract"
    ):
        require_known("stage", "evaluat", iter(["extract", "evaluate", "dpm"]))
    require_known("stage", "dpm", iter(["dpm"]))


def test_no_closest_name_is_made_up_where_none_is_close():
    assert did_you_mean("zzz", ["dpm", "data"]) == "known: data, dpm"


# bind


def test_an_argument_that_does_not_exist_is_refused_by_setting_and_closest():
    with refused(
        r"^label\.in_feature is not a setting of torch\.nn\.Linear; did you mean 'in_features'\?"
    ):
        bind("label", ENCODER, {"in_feature": 2, "out_features": 3})


def test_an_argument_that_is_missing_is_refused_by_setting():
    with refused(r"^net\.out_features is required by torch\.nn\.Linear and is not set$"):
        bind("net", ENCODER, {"in_features": 2})


def test_arguments_that_fit_are_accepted():
    bind("net", ENCODER, {"in_features": 2, "out_features": 3, "bias": False})


def test_a_partial_target_may_lack_arguments_but_not_have_wrong_ones():
    bind("net", ENCODER, {"bias": False}, partial=True)
    with refused(r"^net\.biass is not a setting .* did you mean 'bias'\?"):
        bind("net", ENCODER, {"biass": False}, partial=True)


def test_a_target_that_cannot_be_imported_is_refused():
    with refused(r"^net\._target_ names 'torch\.nn\.Liner', which cannot be imported: "):
        bind("net", "torch.nn.Liner", {})


def takes_any(**anything):
    return anything


def decorated(function):
    @wraps(function)
    def inner(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return inner


class Decorated:
    @decorated
    def __init__(self, size=1):
        self.size = size


def test_a_function_of_any_keyword_takes_any_argument():
    bind("x", f"{__name__}.takes_any", {"whatever": 1})


def test_a_decorated_constructor_is_bound_by_its_own_signature():
    """As diffusers' are, by `register_to_config`."""
    bind("x", f"{__name__}.Decorated", {"size": 2})
    bind("x", "diffusers.DDPMScheduler", {"beta_end": 0.02})
    with refused(r"^x\.sise is not a setting .* did you mean 'size'\?"):
        bind("x", f"{__name__}.Decorated", {"sise": 2})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({**LINEAR, "bia": 1}, "net.bia"),
        ({"inner": {"deep": {**LINEAR, "bia": 1}}}, "net.inner.deep.bia"),
        ({"_target_": f"{__name__}.takes_any", "net": {**LINEAR, "bia": 1}}, "net.net.bia"),
        ([{"name": "x"}, {**LINEAR, "bia": 1}], "net.1.bia"),
        ({"_target_": f"{__name__}.takes_any", "a": [[{**LINEAR, "bia": 1}]]}, "net.a.0.0.bia"),
    ],
    ids=["itself", "in dicts", "in an argument", "in a list", "in an argument's lists"],
)
def test_every_target_within_a_setting_is_bound(value, where):
    with refused(rf"^{where.replace('.', '[.]')} is not a setting of torch\.nn\.Linear"):
        bind_nested("net", value)


def test_targets_within_that_fit_and_plain_values_are_accepted():
    bind_nested("net", {"a": LINEAR, "b": [LINEAR, 3, None], "c": "text"})


def test_a_nested_partial_target_may_lack_arguments():
    optimizer = {"_target_": "torch.optim.AdamW", "lr": 1e-4}
    with refused(r"^optimizer\.params is required"):
        bind_nested("optimizer", optimizer)
    bind_nested("optimizer", {**optimizer, "_partial_": True})
    bind_nested("net", {**LINEAR, "_convert_": "all"})


# check_field_types


@dataclass
class Settings:
    steps: int = 1
    lr: float = 0.1
    name: str = ""
    ema: bool = True
    limit: int | None = None
    source: dict[str, Any] | None = None
    sizes: list[int] | None = None
    mode: Literal["all", "members"] = "all"
    channels: Literal[1, 3] = 3
    anything: Any = None


def check(**values):
    return check_field_types("dpm", Settings, values)


def test_values_of_the_right_type_come_back_unchanged():
    values = {
        "steps": 2,
        "lr": 0.5,
        "name": "a",
        "ema": False,
        "limit": None,
        "source": {"a": 1},
        "sizes": [1],
        "mode": "members",
        "channels": 1,
        "anything": object(),
    }
    assert check(**values) == values


def test_a_whole_float_becomes_an_int_where_an_int_is_meant():
    for name in ("steps", "limit"):
        value = check(**{name: 256.0})[name]
        assert value == 256
        assert type(value) is int


def test_an_int_becomes_a_float_where_a_float_is_meant():
    assert type(check(lr=1)["lr"]) is float


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 2.5, "dpm.steps must be a whole number, got 2.5"),
        ("steps", "2", "dpm.steps must be a whole number, got '2'"),
        ("steps", True, "dpm.steps must be a whole number, got True"),
        ("steps", None, "dpm.steps must be a whole number, got None"),
        ("limit", 2.5, "dpm.limit must be a whole number, got 2.5"),
        ("limit", False, "dpm.limit must be a whole number, got False"),
        ("lr", "1e-4", "dpm.lr must be a number, got '1e-4'"),
        ("lr", True, "dpm.lr must be a number, got True"),
        ("name", 3, "dpm.name must be text, got 3"),
        ("ema", 1, "dpm.ema must be true or false, got 1"),
        ("ema", "yes", "dpm.ema must be true or false, got 'yes'"),
        ("source", [1], "dpm.source must be dict[str, typing.Any], got [1]"),
        ("sizes", 3, "dpm.sizes must be list[int], got 3"),
        (
            "mode",
            "mem",
            "dpm.mode does not accept 'mem'; did you mean 'members'? known: all, members",
        ),
        ("channels", 2, "dpm.channels does not accept 2; known: 1, 3"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_setting_rule_and_value(name, value, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the whole message is compared)
        check(**{name: value})
    assert str(refusal.value) == message


def test_a_choice_of_numbers_comes_back_as_the_choice_itself():
    assert type(check(channels=1.0)["channels"]) is int


def test_a_choice_or_a_number_is_refused_by_naming_both():
    hint = {"num_threads": Literal["auto"] | int}
    owner = type("Settings", (), {"__annotations__": hint})
    for value in ("auto", 3):
        assert check_field_types("runtime", owner, {"num_threads": value}) == {"num_threads": value}
    for value in (None, "two", 1.5, True):
        with refused(rf"num_threads does not accept {value!r}; .*known: a whole number, auto"):
            check_field_types("runtime", owner, {"num_threads": value})


def test_true_is_not_the_choice_1():
    with refused(r"^dpm\.channels does not accept True"):
        check(channels=True)


def test_what_a_composed_config_holds_passes():
    cfg = OmegaConf.create("{steps: 3, lr: 1e-4, sizes: [1], source: {a: b}}")
    expected = {"steps": 3, "lr": 1e-4, "sizes": [1], "source": {"a": "b"}}
    assert check(**OmegaConf.to_container(cfg)) == expected


def test_a_network_that_is_only_looked_at_is_built_once_for_equal_configs() -> None:
    config = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    same = tried("net", {**config})
    assert tried("net", config) is same
    assert tried("net", {**config, "out_features": 4}).out_features == 4
    assert build(config) is not same


def test_a_network_that_cannot_be_built_says_why_itself() -> None:
    config = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 2}
    with pytest.raises(ValueError, match=r"dpm\.unet cannot be built: in_channels must be div"):
        tried("dpm.unet", {**config, "kernel_size": 1, "groups": 2})


# strategies


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    color: str = "red"


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    name: Literal["circle"] = "circle"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    name: Literal["square"] = "square"
    side: int = 2


@dataclass(frozen=True, kw_only=True)
class Striped(Square):
    """A strategy that derives from another one."""

    name: Literal["striped"] = "striped"
    stripes: int = 3


class Hidden(Shape):
    """Without a name of its own, so that it is no choice."""


@dataclass(frozen=True, kw_only=True)
class Star(Hidden):
    name: Literal["star"] = "star"


@dataclass(frozen=True, kw_only=True)
class Corner:
    x: int = 0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Shape
    corner: Corner
    size: int = 1


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ("circle", Circle()),
        ({"name": "square"}, Square()),
        ({"name": "square", "side": 3.0, "color": "blue"}, Square(side=3, color="blue")),
        (Circle(radius=5.0), Circle(radius=5.0)),
        ({"name": "striped", "side": 4, "stripes": 2}, Striped(side=4, stripes=2)),
        ("star", Star()),
    ],
)
def test_a_strategy_is_named_or_described(given, shape):
    found = check_field_types("draw", Drawing, {"shape": given, "corner": {"x": 4}})
    assert found == {"shape": shape, "corner": Corner(x=4)}
    assert isinstance(found["shape"], type(shape))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("shape", "circel", r"^draw\.shape does not accept 'circel'; did you mean 'circle'"),
        ("shape", None, r"^draw\.shape must be a name or {name: \.\.\.}, got None; known: circle"),
        ("shape", {"side": 1}, r"^draw\.shape must be a name or {name: \.\.\.}, got {'side': 1}"),
        ("shape", {"name": "square", "side": "x"}, r"^draw\.shape\.side must be a whole number"),
        (
            "shape",
            {"name": "circle", "side": 1},
            r"^draw\.shape\.side is not a setting of draw\.shape=circle, which has "
            r"draw\.shape\.color, draw\.shape\.radius; "
            r"draw\.shape=square, draw\.shape=striped has it$",
        ),
        ("corner", {"y": 1}, r"^draw\.corner\.y is not a setting of .*Corner; .*known: x"),
        ("corner", 5, r"^draw\.corner must be a mapping, as {a: 1}, got 5"),
    ],
)
def test_a_wrong_part_is_refused_by_its_name(name, given, message):
    with refused(message):
        check_field_types("draw", Drawing, {name: given})


def test_a_part_is_written_out_with_all_its_settings():
    built = Drawing(shape=Square(side=3), corner=Corner())
    settings = written_out({"shape": "square", "size": 1, "_target_": "Drawing"}, built)
    assert settings == {
        "shape": {"name": "square", "color": "red", "side": 3},
        "corner": {"x": 0},
        "size": 1,
        "_target_": "Drawing",
    }
