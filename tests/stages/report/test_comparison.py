"""What attacks share, and what only one of them finds."""

import csv

from sidepipe.stages.report.comparison import distinct, only_here, read_attacks


def test_only_here_is_what_no_other_attack_hits(outputs):
    attacks = read_attacks(outputs.inputs)
    found = {}
    for name, folder in outputs.inputs.items():
        with (folder / "nearest.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["hit"] == "1"]
        found[name] = {int(row["train_index"]) for row in rows}
    for attack in attacks:
        others = set().union(*(found[name] for name in found if name != attack.name))
        assert attack.hit_images == found[attack.name]
        assert only_here(attack, attacks) == found[attack.name] - others
    assert only_here(attacks[0], attacks[:1]) == attacks[0].hit_images


def test_a_shared_artifact_comes_once_with_all_that_share_it(outputs):
    attacks = read_attacks(outputs.inputs)
    assert [names for _, names in distinct(attacks, "dpm")] == [["unconditional", "side", "early"]]
    assert [names for _, names in distinct(attacks, "classifier")] == [["side"]]
    assert len(distinct(attacks, "evaluate")) == 3
