"""References are filled in as by OmegaConf, for every experiment, or the config is refused."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sidepipe.cli.main import CONF, options
from sidepipe.cli.sweep.references import Unsupported, filled


@pytest.mark.parametrize("experiment", options("experiment"))
def test_configs_are_filled_in_as_by_omegaconf(experiment: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [f"experiment={experiment}", "runtime=slurm"])
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert "${" in str(raw)
    assert filled(raw) == OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(
    "raw",
    [
        {"a": 1, "b": "${a}", "c": ["${b}", {"d": "${a}"}]},
        {"a": {"b": {"c": None}}, "d": "${a.b}", "e": "${d.c}"},
        {"a": "x", "b": "${a}/y/${a}"},
        {"a": [1, 2], "b": "${a}"},
        {"a": False, "b": "${a}", "c": "$a {b}"},
        {"a": {"b": 3}, "c": "${oc.select:a.b,7}", "d": "${oc.select:a.e,7}"},
        {"a": {"b": "${f}"}, "c": "${oc.select:a.b,0.5}", "d": "${oc.select:a.e,0.5}", "f": 2},
    ],
)
def test_values_keep_their_type(raw: dict) -> None:
    assert filled(raw) == OmegaConf.to_container(OmegaConf.create(raw), resolve=True)


@pytest.mark.parametrize(
    "raw",
    [
        {"a": 1.5, "b": "${a}/y"},  # OmegaConf has rules for such numbers within text
        {"a": 1, "b": {"c": "${.a}"}},
        {"a": "${expanded:~}"},
        {"a": "${b}"},
        {"a": [1], "b": "${a.0}"},
    ],
)
def test_what_only_omegaconf_can_fill_in_is_refused(raw: dict) -> None:
    with pytest.raises(Unsupported):
        filled(raw)
