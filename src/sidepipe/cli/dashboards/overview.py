"""The W&B workspace of a sweep: its panels, and saving it to a server under its name.

`python -m sidepipe.cli.dashboards` saves it. The report contains the same results offline.
"""

from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces._graphql import execute_graphql

from sidepipe.stages.classifier import charts as classifier
from sidepipe.stages.dpm import charts as dpm
from sidepipe.stages.evaluate import charts as evaluate
from sidepipe.tracking.runs import GLOBAL_STEP

BANDS = ("high", "mid", "low")
# wandb_workspaces finds a view only by the id in its address, not by its displayed name.
VIEWS = """
query Views($entity: String, $project: String) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: "project-view") { edges { node { name displayName } } }
  }
}
"""


def name_of(group: str | None) -> str:
    """The name of the workspace of one sweep, or of the whole project."""
    return f"sidepipe {group}" if group else "sidepipe"


def sections() -> list[ws.Section]:
    """The panels of the workspace, results first, with one line or bar per attack."""
    return [*_results(), *_extent_and_model(), *_cost()]


def _results() -> list[ws.Section]:
    return [
        _section(
            "Hits by subset size and attack",
            _over_sizes("hits at 0.1 % false positives", evaluate.HITS),
            _over_sizes("share of images that hit", evaluate.HIT_RATE),
            _over_sizes("different training images hit", evaluate.UNIQUE),
            _by_attack(
                "hits at 0.1 % false positives, all sizes", evaluate.HITS, evaluate.HELDOUT_HITS
            ),
        ),
        _section(
            "Excess over held-out images",
            _over_sizes(
                "excess and its 95 % interval",
                evaluate.EXCESS,
                evaluate.EXCESS_LOW,
                evaluate.EXCESS_HIGH,
            ),
            _line("excess by threshold", evaluate.THRESHOLD, evaluate.CURVE_EXCESS),
            _line(
                "AMS by threshold",
                evaluate.THRESHOLD,
                evaluate.CURVE_AMS_TRAIN,
                evaluate.CURVE_AMS_HELDOUT,
            ),
        ),
        _section(
            "AMS and UMS in bands of similarity",
            *(
                _over_sizes(f"{score.upper()}, {band}", evaluate.band_key(band, score))
                for score in ("ams", "ums")
                for band in BANDS
            ),
        ),
    ]


def _extent_and_model() -> list[ws.Section]:
    return [
        _section(
            "How much there is to extract",
            _line(
                "different training images by images generated",
                evaluate.RAREFACTION_IMAGES,
                evaluate.RAREFACTION_UNIQUE,
                evaluate.RAREFACTION_LOW,
                evaluate.RAREFACTION_HIGH,
            ),
            _over_sizes(
                "lower bound of images that can be hit, 95 % confidence", evaluate.AT_LEAST
            ),
            _over_sizes("estimated share of further hits on images already hit", evaluate.COVERAGE),
        ),
        _section(
            "The model under attack",
            _line("loss", GLOBAL_STEP, dpm.LOSS),
            _line(
                "loss on training and held-out images",
                GLOBAL_STEP,
                dpm.LOSS_TRAIN,
                dpm.LOSS_HELDOUT,
            ),
        ),
        _section(
            "The classifier by noise level",
            _line(
                "cross-entropy, and entropy of the label frequencies",
                classifier.NOISE_LEVEL,
                classifier.CROSS_ENTROPY,
                classifier.LABEL_ENTROPY,
            ),
            _line("accuracy", classifier.NOISE_LEVEL, classifier.ACCURACY),
            _line("cross-entropy while training", GLOBAL_STEP, classifier.TRAINED_CROSS_ENTROPY),
        ),
    ]


def _cost() -> list[ws.Section]:
    return [
        _section(
            "Cost in network evaluations",
            _by_attack(
                "evaluations of the attack, and of synthetic images",
                evaluate.EVALUATIONS,
                evaluate.SYNTHETIC_EVALUATIONS,
            ),
            wr.ScatterPlot(
                title="hits by cost",
                x=wr.SummaryMetric(evaluate.EVALUATIONS),
                y=wr.SummaryMetric(evaluate.HITS),
                log_x=True,
            ),
        ),
    ]


def _section(name: str, *panels: Any) -> ws.Section:
    return ws.Section(name=name, panels=list(panels), is_open=True)


def _line(title: str, x: str, *y: str) -> wr.LinePlot:
    """One line per run."""
    return wr.LinePlot(title=title, x=x, y=list(y), title_x=x.rpartition("/")[2])


def _over_sizes(title: str, *y: str) -> wr.LinePlot:
    """One line per attack over the number of training images, with one point per run."""
    return wr.LinePlot(
        title=title,
        x=evaluate.TRAIN_IMAGES,
        y=list(y),
        title_x="training images",
        log_x=True,
        groupby=wr.Config("attack"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _by_attack(title: str, *metrics: str) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=list(metrics), groupby=wr.Config("attack"))


def workspace(entity: str, project: str, group: str | None) -> ws.Workspace:
    """The workspace, not yet saved. group: the sweep of its runs, None for all runs."""
    chosen = f"Metric('Group') == {group!r}" if group else ""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name_of(group),
        sections=sections(),
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(filters=chosen),
    )


def put(entity: str, project: str, group: str | None) -> str:
    """The address of the workspace, after creating it or updating the one of its name.

    An update keeps changes of users other than panels, such as colors and hidden runs.
    """
    new = workspace(entity, project, group)
    answer = execute_graphql(wandb.Api(), VIEWS, {"entity": entity, "project": project})
    if answer["project"] is None:
        raise ValueError(f"{entity} has no project {project}; remedy: upload its runs first")
    nodes = [edge["node"] for edge in answer["project"]["allViews"]["edges"]]
    named = [node["name"] for node in nodes if node["displayName"] == new.name]
    if not named:
        return new.save().url
    short = named[0].removeprefix("nw-").removesuffix("-v")
    old = ws.Workspace.from_url(f"https://any.host/{entity}/{project}?nw={short}")
    old.sections = new.sections
    return old.save().url
