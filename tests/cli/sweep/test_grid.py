"""The grid: its points are those of Hydra's own multirun, and what points share is one node."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sidepipe.cli.main import CONF
from sidepipe.cli.sweep.grid import Sweep, plans_of, sweep_of
from sidepipe.engine.plan import plan

SMOKE = ("experiment=smoke", "attacks=compare")


def attack_demo(*overrides: str) -> Sweep:
    return sweep_of("attack_demo", [*SMOKE, *overrides])


def test_the_axes_are_those_of_the_file_and_of_the_command_line_in_that_order() -> None:
    sweep = attack_demo("dpm.num_train_images=32,64")
    assert sweep.axes == ["seed", "dpm.num_train_images"]
    assert [tuple(point.axes.values()) for point in sweep.points] == [
        *((0, 32), (0, 64), (1, 32), (1, 64), (2, 32), (2, 64)),
    ]


def test_a_value_on_the_command_line_takes_the_place_of_an_axis_of_the_file() -> None:
    assert [point.axes for point in attack_demo("seed=7").points] == [{"seed": 7}]
    assert [point.axes["seed"] for point in attack_demo("seed=range(3,6)").points] == [3, 4, 5]


@pytest.mark.parametrize(
    "axis",
    [
        "dpm.num_train_images=32,64",  # values
        "dpm=tiny,unet16",  # files
        "diffusion=ddpm_linear,ddpm_cosine",
        "+attacks.strong={extract: {num_images: 50}},{extract: {num_images: 60}}",
        "attacks=single,compare",
        "dpm.unet.block_out_channels=[8,8],[8,16]",
        "data.size=8,4",
    ],
)
def test_a_point_has_the_artifacts_that_its_command_line_makes(axis: str) -> None:
    sweep = attack_demo("seed=1", axis)
    assert len(sweep.points) == 2
    for point in sweep.points:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            alone = plan(compose("config", list(point.overrides)))
        assert list(alone.nodes) == list(point.plan.nodes)
        assert alone.runtime == point.plan.runtime
    # The points of a job, of which one occurs twice.
    again = [each.overrides for each in (*sweep.points, sweep.points[0])]
    for each, the_plan in zip((*sweep.points, sweep.points[0]), plans_of(again), strict=True):
        assert list(the_plan.nodes) == list(each.plan.nodes)
    first, second = (point.plan.goals("all")[0].key for point in sweep.points)
    assert first != second


def test_what_points_share_is_one_task() -> None:
    sweep = attack_demo("seed=0", "extract.guidance.guidance_scale=1,2,3")
    stages = [task.node.stage.name for task in sweep.tasks.values()]
    once = dict.fromkeys(("data", "dpm", "generate", "label", "classifier", "reference"), 1)
    # Plain sampling has no guidance: it is one artifact more.
    assert {name: stages.count(name) for name in stages} == {
        **once,
        "extract": 4,
        "evaluate": 4,
        "report": 3,
    }
    shared = next(task for task in sweep.tasks.values() if task.node.stage.name == "dpm")
    assert len(shared.points) == 3
    assert shared.values(sweep.axes) == ""


def test_tasks_come_stage_by_stage_with_inputs_before_their_readers() -> None:
    tasks = attack_demo("dpm.num_train_images=32,64").tasks
    seen: set[str] = set()
    for key, task in tasks.items():
        assert {node.key for node in task.node.inputs.values()} <= seen
        seen.add(key)
    stages = [task.node.stage.name for task in tasks.values()]
    assert len(list(dict.fromkeys(stages))) == len(
        [s for i, s in enumerate(stages) if i == 0 or stages[i - 1] != s]
    )


def test_a_task_tells_its_place_in_the_grid() -> None:
    sweep = attack_demo("dpm.num_train_images=32,64")
    dpm = [task for task in sweep.tasks.values() if task.node.stage.name == "dpm"]
    assert dpm[1].values(sweep.axes) == "seed=0 dpm.num_train_images=64"


def test_the_stage_asked_for_bounds_the_sweep() -> None:
    tasks = attack_demo("stage=generate").tasks.values()
    assert {task.node.stage.name for task in tasks} == {"data", "dpm", "generate"}


def test_a_sweep_keeps_its_own_beside_the_artifacts(tmp_path: Path) -> None:
    sweep = attack_demo(f"runtime.outputs={tmp_path}")
    assert sweep.folder == tmp_path / "sweeps" / "attack_demo"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dpm.num_train_images=32,0"], r"dpm\.num_train_images must be >= 1 or null, got 0"),
        (["stage=evalute"], "did you mean 'evaluate'"),
        (
            ["extract.guidance.guidance_scale=interval(0,1)"],
            r"guidance_scale must be a list of values",
        ),
        (["evaluate.gallery_pair=1,2"], "gallery_pair"),
    ],
)
def test_what_no_point_can_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises((ValueError, HydraException, OmegaConfBaseException), match=message):
        attack_demo(*overrides)


def test_an_unknown_sweep_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"SWEEP does not accept 'atack_demo'; did you mean"):
        sweep_of("atack_demo", [])
