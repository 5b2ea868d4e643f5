"""The facts of the report for people who decide, as they stand in audit.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sidepipe.engine.artifacts import Artifact
from sidepipe.memorization.rates import rate
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.decision.sentences import answer, limitations, not_tested, remedies
from sidepipe.stages.report.decision.sources import (
    Sources,
    different_by_chance,
    finding,
    training_images,
)
from sidepipe.stages.report.notices import notices
from sidepipe.stages.report.rows import described

WORST, SUBJECTS = 12, 8  # rows that fit on the two pages
CONFIDENCE = 0.95


def facts(sources: Sources, title: str, author: str | None) -> dict[str, Any]:
    """All facts of the report, by the names of schema.json."""
    images = training_images(sources)
    found: dict[str, Any] = {
        "schema_version": 1,
        "title": title,
        "author": author,
        **_tested(sources),
        "attacks": [_attack(attack) for attack in sources.known],
        "audit": _audit(sources.audit),
        "verdicts": [_verdict(*one) for one in sources.verdicts.items()],
        "extractable": _extractable(sources),
        "not_found": _not_found(sources),
        "worst": _worst(images),
        "subjects": _subjects(images),
        "warnings": notices(sources.data.manifest, sources.dpm.manifest, sources.attacks),
    }
    found["answer"] = answer(found)
    found["remedies"] = remedies(sources.mitigations)
    found["not_tested"] = not_tested(sources, found)
    found["limitations"] = limitations(found)
    return found


def _tested(sources: Sources) -> dict[str, Any]:
    """The model, the data and the software, with their hashes; the date is that of the last run."""
    made = list(sources.inputs.values())
    last = max(made, key=lambda one: one.manifest["finished"]).manifest
    dpm, data = sources.dpm, sources.data
    return {
        "date": last["finished"],
        "software": {
            "version": last["packages"].get("sidepipe"),
            "commit": last["git"]["commit"] if last["git"] else None,
        },
        "model": {
            "key": dpm.key,
            "source": _origin(dpm),
            "weights_sha256": _hashes(dpm, (".safetensors",)),
        },
        "data": {
            "key": data.key,
            "images_sha256": _hashes(data, ("images.npy",)),
            "num_training_images": dpm.summary.get("num_train_images"),
            "num_heldout_images": dpm.summary.get("num_heldout_images"),
        },
        "budget": {
            "generated_images": _generated(sources),
            "network_evaluations": _evaluations(sources),
        },
    }


def _origin(dpm: Artifact) -> str:
    """Where the model comes from, in words."""
    settings = dpm.settings
    if "score" in settings:
        training = settings["score"] == "training"
        of = "the training images" if training else "the distribution of the images"
        return f"a model in closed form of {of}, without training"
    if "path" in settings:
        tuned = ", fine-tuned by this program" if "max_steps" in settings else ""
        return f"{settings['path']}{tuned}"
    return "trained by this program" if "max_steps" in settings else "images of another tool"


def _hashes(made: Artifact, endings: tuple[str, ...]) -> dict[str, str]:
    files = made.manifest["files"].items()
    return {name: about["sha256"] for name, about in files if name.endswith(endings)}


def _generated(sources: Sources) -> int:
    """Generated images of all attacks, and the samples of the audit."""
    extraction = sources.audit and sources.audit["extraction"]
    own = extraction["sampled"] if extraction else 0
    return own + sum(attack.num_images for attack in sources.attacks)


def _evaluations(sources: Sources) -> int | None:
    """Network evaluations of all attacks and of the audit; None for images of another tool."""
    costs = [attack.network_evaluations for attack in sources.attacks]
    if (audit := sources.audit) is not None:
        costs.append(audit["evaluations_per_image"] * (audit["num_train"] + audit["num_heldout"]))
        costs.append(audit["evaluations_of_sample"])
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _attack(attack: Attack) -> dict[str, Any]:
    return {
        "name": attack.name,
        "description": described(attack),
        "generated_images": attack.num_images,
        "network_evaluations": attack.network_evaluations,
        "finding": finding(attack),
        "copies": attack.hits(),
        "copies_by_chance": attack.heldout_hits,
        "excess_share": attack.excess_share,
        "excess_interval": list(attack.excess_interval),
        "different_images": attack.unique,
        "different_by_chance": different_by_chance(attack),
        "training_images": attack.num_different,
        "at_least": _at_least(attack),
    }


def _at_least(attack: Attack) -> int | None:
    """The lower bound of the images that can be extracted, None unless copies exceed chance.

    The estimate for the most generated images limits it.
    """
    curve = attack.results["rarefaction"]
    copies = finding(attack) == "copies"
    return min(curve["at_least"], int(curve["unique"][-1])) if copies else None


def _audit(results: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if results is None:
        return None
    names = ("num_train", "num_heldout", "flagged", "heldout_flagged", "evaluations_per_image")
    excess = {f"excess_{name}": results["excess"][name] for name in ("share", "interval")}
    inference = results.get("inference")
    if inference is not None:
        kept = ("p_value", "level", "unit", "num_suspects", "num_control", "power")
        inference = {name: inference[name] for name in kept}
    extraction = results["extraction"]
    if extraction is not None:
        kept = ("budget", "sampled", "expected", "interval", "heldout_expected", "heldout_interval")
        extraction = {name: extraction[name] for name in kept}
    own = {name: results[name] for name in names}
    return {**own, **excess, "inference": inference, "extraction": extraction}


def _verdict(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_images", "num_candidates", "expected_hits")
    listed = [{"promised_precision": float(p), **row} for p, row in results["listed"].items()]
    return {"attack": name, **{name: results[name] for name in names}, "listed": listed}


def _extractable(sources: Sources) -> list[dict[str, Any]]:
    """How many training images come out, each with its 95 % interval and what it rests on.

    By the best attack if its copies exceed chance: after as many generated images as were made, and
    after four times as many. By the audit: those that the model returns to, less those that chance
    explains, and those that are expected to be extracted within its budget.
    """
    found = []
    if (best := sources.best) is not None and finding(best) == "copies":
        curve, chance = best.results["rarefaction"], different_by_chance(best)
        for images, by_chance in ((best.num_images, chance), (curve["num_images"][-1], None)):
            at = curve["num_images"].index(images)
            interval = [curve["low"][at], curve["high"][at]]
            row = {"basis": best.name, "generated_images": images, "expected": curve["unique"][at]}
            found.append({**row, "interval": interval, "by_chance": by_chance})
    if (audit := sources.audit) is not None:
        count, excess = audit["num_train"], audit["excess"]
        low, high = (max(0.0, count * end) for end in excess["interval"])
        expected = max(0.0, count * excess["share"])
        row = {"basis": "audit", "generated_images": None, "expected": expected}
        found.append({**row, "interval": [low, high], "by_chance": None})
        if (of := audit["extraction"]) is not None:
            row = {"basis": "audit probability", "generated_images": of["budget"]}
            row |= {"expected": of["expected"], "interval": of["interval"]}
            found.append({**row, "by_chance": of["heldout_expected"]})
    return found


def _not_found(sources: Sources) -> dict[str, Any] | None:
    """The training images that no attack hit, and the chance that one comes out all the same.

    upper_bound: of the chance that one generated image copies a given training image that none of
    the generated images copies, with 95 % confidence, 1 - 0.05^(1 / n), about 3 / n (Hanley and
    Lippman-Hand, 1983). next_new_share: the chance that the next generated image copies a training
    image that was not found before (Good and Turing), with its 95 % interval; None unless copies
    exceed chance. None without attacks.
    """
    if (best := sources.best) is None:
        return None
    seen = set().union(*(attack.hit_images for attack in sources.known))
    number, once = best.num_images, best.results["rarefaction"]["observed"]["singletons"]
    new = rate(np.arange(number) < once) if finding(best) == "copies" else {}
    return {
        "attack": best.name,
        "generated_images": number,
        "training_images": best.num_different - len(seen),
        "upper_bound": 1 - (1 - CONFIDENCE) ** (1 / number),
        "next_new_share": new.get("share"),
        "next_new_interval": new.get("interval"),
    }


def _worst(images: pd.DataFrame) -> list[dict[str, Any]]:
    """The first images that the audit flags, or that attacks copy beyond chance."""
    at_risk = images.loc[(images["hits"] > 0) | images["flagged"].eq(True)]
    rows: Any = at_risk.head(WORST).replace({np.nan: None}).to_dict("records")
    return rows


def _subjects(images: pd.DataFrame) -> dict[str, Any] | None:
    """Subjects by their worst image; None without groups of images."""
    known = images.loc[images["subject"].notna()]
    if not len(known):
        return None
    of = known.groupby("subject", sort=False)
    table = of.agg(images=("id", "size"), hits=("hits", "sum"), flagged=("flagged", "sum"))
    chances = of["probability"].agg(lambda each: 1 - np.prod(1 - each.to_numpy(float)))
    table = table.join(chances).reset_index()
    table = table.sort_values(["hits", "flagged"], ascending=False, kind="stable")
    at_risk = (table["hits"] > 0) | (table["flagged"] > 0)
    worst = table.head(SUBJECTS).astype({"flagged": int, "probability": object})
    rows: Any = worst.replace({np.nan: None}).to_dict("records")
    return {"number": len(table), "at_risk": int(at_risk.sum()), "worst": rows}
