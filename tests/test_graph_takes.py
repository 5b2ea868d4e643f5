"""Settings that a stage takes of another one: as the row has them, and nowhere to be set twice."""

import pytest
from tests.composing import composed

from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.plan import plan

TUNED = ("attacks=single", "extract=tuned")


def row(name: str, of: str) -> str:
    return f"+attacks.{name}={{{of}}}"


def made(*overrides: str) -> Plan:
    return plan(composed(*overrides))


def nodes(the_plan: Plan, stage: str) -> list[Node]:
    return [node for node in the_plan.nodes.values() if node.stage.name == stage]


def tune_of(the_plan: Plan, attack: str) -> Node:
    return the_plan.goals("report")[0].inputs[attack].inputs["extract"].inputs["tune"]


def test_each_row_s_trials_are_of_that_row_s_own_attack() -> None:
    own = "extract: {surrogate: posterior, guidance: {t_max: 900}}"
    the_plan = made(*TUNED, "extract.surrogate=classifier", row("mine", own))
    for name, surrogate, t_max in (("attack", "classifier", None), ("mine", "posterior", 900)):
        attack = tune_of(the_plan, name).settings["attack"]
        assert (attack["surrogate"], attack["guidance"]["t_max"]) == (surrogate, t_max)
    assert tune_of(the_plan, "attack").key != tune_of(the_plan, "mine").key
    assert tune_of(the_plan, "mine").inputs.keys() == {"dpm", "generate", "label"}


def test_attacks_of_any_size_share_one_tuning() -> None:
    large = row("large", "extract: {num_images: 1000000, shard_size: 7, rounds: 3}")
    the_plan = made(*TUNED, large)
    assert len(nodes(the_plan, "tune")) == 1
    assert len(nodes(the_plan, "extract")) == 2


def test_a_row_may_tune_as_it_likes() -> None:
    other = row("other", "tune: {num_images: 50, grid: {t_min: [0]}}")
    the_plan = made(*TUNED, other)
    assert tune_of(the_plan, "other").settings["grid"]["t_min"] == [0]
    assert tune_of(the_plan, "other").settings["num_images"] == 50
    assert tune_of(the_plan, "attack").settings["num_images"] == 200
    assert len(nodes(the_plan, "tune")) == 2


def test_a_tuned_attack_changes_with_its_grid_and_no_other_attack_does() -> None:
    before, now = (made("attacks=tuned", *more) for more in ((), ("tune.grid.t_min=[0]",)))
    keys = [{p.title(n): k for k, n in p.nodes.items()} for p in (before, now)]
    changed = {title for title in keys[0] if keys[0][title] != keys[1][title]}
    tuned = {f"{stage} [posterior_tuned]" for stage in ("tune", "extract", "evaluate")}
    assert changed == {*tuned, "report"}


def test_rows_that_are_not_tuned_need_no_trials_and_stage_tune_says_which_would() -> None:
    rows = made("extract=tuned").goals("report")[0].inputs  # of the comparison one is plain
    assert {name for name, n in rows.items() if "tune" in n.inputs["extract"].inputs} == {"side"}
    with pytest.raises(ValueError, match=r"'tune'; remedy: extract\.tuned=true, as in attacks=tun"):
        made("attacks=compare").needed("tune")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+extract.sede=1"], r"^extract\.sede is not a setting of the stage extract; did"),
        ([row("mine", "extract: {sede: 1}")], r"^attacks\.mine\.extract\.sede is not a setting"),
        (["extract.guidance.t_min=-1"], r"^extract\.guidance\.t_min must be >= 0"),
        (["tune.num_images=1"], r"^tune\.num_images must be >= 2, got 1"),
        (["+tune.grid.t_mn=[0]"], r"^tune\.grid does not accept 't_mn'; did you mean 't_min'"),
        (
            ["tune.grid.t_min=[0,951]", "extract.num_inference_steps=20"],
            r"timesteps .* \[951, None",
        ),
        (["tune.grid.targets=[tight]"], r"^tune\.grid\.targets does not accept 'tight'"),
        (["~tune"], r"^tune must be set, for extract reads it, got None; choose tune=\.\.\."),
        (
            [row("mine", "tune: {attack: {guidance: {t_min: 5}}}")],
            r"^attacks\.mine\.tune\.attack must be as ex",
        ),
        (["tune.attack={}"], r"^tune\.attack must be as extract, got \{\}; set that instead"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(*TUNED, *overrides)


def test_a_grid_of_points_of_lambda_s_factor_makes_a_plan() -> None:
    grid = "+tune.grid.guidance_schedule=[constant,[[0,0],[400,1],[999,2]]]"
    assert len(tune_of(made(*TUNED, grid), "attack").stage._trials) == 36
