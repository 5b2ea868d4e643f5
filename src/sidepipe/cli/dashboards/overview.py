"""The W&B workspace of a sweep: its panels, and saving it to a server under its name.

`python -m sidepipe.cli.dashboards` saves it. The report contains the same results offline.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces._graphql import execute_graphql

from sidepipe.engine.places import Record, axis_key, is_numeric, line_key
from sidepipe.stages.classifier import charts as classifier
from sidepipe.stages.dpm import charts as dpm
from sidepipe.stages.evaluate import charts as evaluate
from sidepipe.tracking.content import GLOBAL_STEP

BANDS = ("high", "mid", "low")
# The stages whose runs have panels; those of other artifacts are not in the list of runs.
SHOWN = ("evaluate", "dpm", "classifier")
# The keys of pictures, which runs have only where tracking.images is true.
PICTURES = ("evaluate/pairs", "dpm/pictures")
MOST_RUNS = 1000
# A range above this ratio of largest to smallest value has a logarithmic axis, as in the report.
WIDE = 10
# wandb_workspaces finds a view only by the id in its address, not by its displayed name.
VIEWS = """
query Views($entity: String, $project: String) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: "project-view") { edges { node { name displayName } } }
  }
}
"""
Axes = Mapping[str, list[Any]]


def name_of(group: str | None) -> str:
    """The name of the workspace of one sweep, or of the whole project."""
    return f"sidepipe {group}" if group else "sidepipe"


def sections(axes: Axes, images: bool = False) -> list[ws.Section]:
    """The panels of the workspace, results first.

    axes: the values of each swept setting; none outside of a sweep, or where only seeds differ.
    images: whether to show pictures.
    """
    results = [_hits(axes), _excess(axes), _bands(axes), _extent(axes)]
    shown = [*results, _model(), _classifier(), _cost()]
    return shown + ([_pictures()] if images else [])


def _hits(axes: Axes) -> ws.Section:
    return _section(
        "Hits",
        "The false positive rate is the first of evaluate.false_positive_rates, 0.1 % by "
        "default. Held-out hits are the control, scaled to as many images: hits are evidence only "
        "in excess of them. Different training images count once however often they are hit.",
        *_over(axes, "hits and held-out hits", evaluate.HITS, evaluate.HELDOUT_HITS),
        *_over(axes, "different training images hit", evaluate.UNIQUE),
        *_over(axes, "share of images that hit", evaluate.HIT_RATE),
    )


def _excess(axes: Axes) -> ws.Section:
    return _section(
        "Excess over held-out images",
        "The excess is the share of generated images that hit training images, minus the "
        "share that hits held-out images, with its 95 % interval over images. An interval "
        "that includes zero shows no memorization. By threshold: one line per run.",
        *_over(
            axes,
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
    )


def _bands(axes: Axes) -> ws.Section:
    return _section(
        "AMS and UMS in bands of similarity",
        "AMS is the number of generated images, and UMS that of different training images, "
        "with a similarity in the band, both per generated image. UMS falls with the number "
        "of generated images.",
        *(
            panel
            for score in ("ams", "ums")
            for band in BANDS
            for panel in _over(axes, f"{score.upper()}, {band}", evaluate.band_key(band, score))
        ),
    )


def _extent(axes: Axes) -> ws.Section:
    return _section(
        "How much there is to extract",
        "Rarefaction: the number of different training images that a part of the images hits, "
        "with its 95 % interval; where the curve still rises, more images can be found. The lower "
        "bound is for an attack with more images of the same kind, and the share is that of "
        "further hits which fall on images already hit.",
        _line(
            "different training images by images generated",
            evaluate.RAREFACTION_IMAGES,
            evaluate.RAREFACTION_UNIQUE,
            evaluate.RAREFACTION_LOW,
            evaluate.RAREFACTION_HIGH,
        ),
        *_over(axes, "lower bound of images that can be hit, 95 % confidence", evaluate.AT_LEAST),
        *_over(axes, "estimated share of further hits on images already hit", evaluate.COVERAGE),
    )


def _model() -> ws.Section:
    return _section(
        "The model under attack",
        "The loss of each model over optimizer steps. A loss on held-out images above that on "
        "training images is a sign of memorization, not a measure of it.",
        _line("loss", GLOBAL_STEP, dpm.LOSS),
        _line(
            "loss on training and held-out images", GLOBAL_STEP, dpm.LOSS_TRAIN, dpm.LOSS_HELDOUT
        ),
    )


def _classifier() -> ws.Section:
    return _section(
        "The classifier by noise level",
        "A classifier has information about an image at the noise levels where its cross-entropy "
        "is below the entropy of the label frequencies.",
        _line(
            "cross-entropy, and entropy of the label frequencies",
            classifier.NOISE_LEVEL,
            classifier.CROSS_ENTROPY,
            classifier.LABEL_ENTROPY,
        ),
        _line("accuracy", classifier.NOISE_LEVEL, classifier.ACCURACY),
        _line("cross-entropy while training", GLOBAL_STEP, classifier.TRAINED_CROSS_ENTROPY),
    )


def _cost() -> ws.Section:
    return _section(
        "Cost in network evaluations",
        "The evaluations of the network that an attack needs, and those of the synthetic images "
        "that it learns from. Compare attacks at equal cost: one mark per run.",
        _bars(
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
    )


def _pictures() -> ws.Section:
    return _section(
        "Pictures",
        "Pairs are a generated image, its closest training image and its closest held-out image. "
        "They may be people's faces.",
        *(wr.MediaBrowser(title=key, media_keys=[key], num_columns=3) for key in PICTURES),
    )


def _section(name: str, note: str, *panels: Any) -> ws.Section:
    """The panels after a note that explains them."""
    return ws.Section(name=name, panels=[wr.MarkdownPanel(markdown=note), *panels], is_open=True)


def _line(title: str, x: str, *y: str) -> wr.LinePlot:
    """One line per run."""
    return wr.LinePlot(title=title, x=x, y=list(y), title_x=x.rpartition("/")[2])


def _over(axes: Axes, title: str, *y: str) -> list[wr.LinePlot | wr.BarPlot]:
    """A panel for each axis of numbers, and one with a bar per point for the other axes.

    A line is an attack at one value of each other axis; seeds are its mean and its range. Where
    nothing is swept, the axis is the number of training images.
    """
    numeric = [axis for axis, values in axes.items() if is_numeric(values)]
    lines = [
        _lines(f"{title}, over {axis}", axis_key(axis), axis, line_key(axis), axes[axis], y)
        for axis in numeric
    ]
    if axes and len(numeric) == len(axes):
        return list(lines)
    return [*lines, _bars(f"{title}, at each point" if axes else title, *y)]


def _lines(
    title: str, x: str, title_x: str, groupby: str, values: Iterable[float], y: Iterable[str]
) -> wr.LinePlot:
    above = [value for value in values if value > 0]
    wide = len(above) == len(list(values)) and max(above) / min(above) > WIDE
    return wr.LinePlot(
        title=title,
        x=x,
        y=list(y),
        title_x=title_x,
        log_x=wide,
        groupby=wr.Config(groupby),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MOST_RUNS,
    )


def _bars(title: str, *metrics: str) -> wr.BarPlot:
    """One bar per point and attack."""
    return wr.BarPlot(
        title=title,
        metrics=list(metrics),
        groupby=wr.Config("point"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MOST_RUNS,
    )


def workspace(
    entity: str, project: str, record: Record | None, images: bool = False
) -> ws.Workspace:
    """The workspace, not yet saved. record: of the sweep of its runs, None for all runs."""
    kinds = f"Metric('JobType') in {list(SHOWN)!r}"
    group = record.group if record else None
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name_of(group),
        sections=sections(record.axes if record else {}, images),
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=f"Metric('Group') == {group!r} and {kinds}" if group else kinds
        ),
    )


def put(entity: str, project: str, record: Record | None, images: bool = False) -> str:
    """The address of the workspace, after creating it or updating the one of its name.

    An update keeps changes of users other than panels, such as colors and hidden runs.
    """
    new = workspace(entity, project, record, images)
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
