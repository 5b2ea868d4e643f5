from pathlib import Path

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.tables import cost_table, tuning_table
from sidepipe.stages.report.words import DASH

COST = {"unet_forwards": 500, "surrogate_gradients": 400, "network_evaluations": 700}


def attack(name, trials, tuned):
    results = {"cost": {**COST, "gradient_cost": 0.5, "synthetic_evaluations": 9}, "trials": trials}
    guidance = {"guidance_scale": 1.0, "t_min": 0, "targets": "uniform"}
    settings = {"surrogate": {"name": "posterior"}, "guidance": guidance}
    settings |= {"refine": {"name": "none"}}
    manifests = {"extract": {"settings": settings, "summary": {"tuned": tuned} if tuned else {}}}
    return Attack(name, Path(), results, manifests)


def trial(guidance_scale, t_min, score, hits):
    tried = {"guidance_scale": guidance_scale, "t_min": t_min}
    judged = {"score": score, "judged_by": "rate"}
    return {**tried, **judged, **COST, "images": 200, "hits": hits, "unique": hits // 2}


def test_trials_come_by_blind_score_with_the_hits_that_it_did_not_see():
    trials = [trial(1.0, 0, 0.02, 6), trial(1.0, 200, 0.1, 4), trial(2.0, 200, 0.055, 9)]
    tuned = attack("tuned", trials, {"guidance_scale": 1.0, "t_min": 200})
    table = tuning_table([attack("plain", [], None), tuned])
    assert table.rows == [
        ("tuned", ["guidance_scale 1.0, t_min 200", "200", "10.0 %", "chosen", "4", "2", "3"]),
        ("tuned", ["guidance_scale 2.0, t_min 200", "200", "5.5 %", "", "9", "4", "1"]),
        ("tuned", ["guidance_scale 1.0, t_min 0", "200", "2.0 %", "", "6", "3", "2"]),
    ]
    assert len(table.columns) == len(table.rows[0][1]) == sum(span for _, span in table.groups)


def test_the_settings_of_a_tuned_attack_are_those_it_chose():
    tuned = attack("tuned", [], {"t_min": 200})
    assert tuned.settings["t_min"] == 200
    assert tuned.settings["guidance_scale"] == 1.0


def test_where_groups_were_counted_the_score_is_their_number():
    trials = [{**trial(1.0, 0, 90.0, 6), "judged_by": "groups"}]
    (_, cells), *_ = tuning_table([attack("tuned", trials, {"guidance_scale": 1.0})]).rows
    assert cells[2] == "90 groups"


def test_the_cost_table_says_how_images_were_refined():
    plain, refined = attack("plain", [], None), attack("refined", [], {"refine.steps": 8})
    for one, refine in ((plain, {"name": "none"}), (refined, {"name": "fixed_point", "t": 60})):
        settings = {"surrogate": {"name": "none"}, "refine": refine}
        one.manifests["extract"]["settings"] |= settings
    table = cost_table([plain, refined])
    place = table.columns.index("refined")
    assert [cells[place] for _, cells in table.rows] == [DASH, "8 at t = 60"]
    assert len(table.columns) == sum(span for _, span in table.groups)
