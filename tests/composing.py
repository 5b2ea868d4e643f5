"""Composing configs as the command line does."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sidepipe.cli.main import CONF
from sidepipe.engine.graph import Plan
from sidepipe.engine.plan import check_parts, plan


def composed(*overrides: str) -> DictConfig:
    """The config of `sidepipe <overrides>`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        # `runtime.outputs` is Hydra's own folder too; tests never write there.
        return compose("config", overrides=list(overrides))


def planned(*overrides: str) -> Plan:
    """The plan of `sidepipe <overrides>`, checked as it is before anything of it runs."""
    the_plan = plan(composed(*overrides))
    check_parts(the_plan.nodes.values(), the_plan.runtime)
    return the_plan
