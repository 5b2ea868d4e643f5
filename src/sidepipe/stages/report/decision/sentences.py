"""The sentences of the report for people who decide: the answer, what is missing, what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sidepipe.stages.report.words import average, count

if TYPE_CHECKING:
    from sidepipe.stages.report.decision.sources import Sources

ALWAYS = (
    "A test shows what was found with the stated effort. "
    "A result of zero is no proof that nothing can be extracted.",
    "Another kind of attack, or more computing, may find more.",
    "A copy is defined by one measure of likeness. "
    "Parts of an image, or an image in other colors, are not counted.",
)
NOT_GENERATED = (
    "No generated images were compared with them, so it was not tested which of them an attacker "
    "obtains."
)
NOT_ATTACKED = "No attack was run; the audit estimates how many of them an attacker obtains."


def answer(found: Mapping[str, Any]) -> str:
    """The finding in a few sentences: the test with the best evidence comes first."""
    audit, texts = found["audit"], []
    if audit is not None and audit["excess_interval"][0] > 0:
        texts.append(_of_audit(audit))
    if found["attacks"]:
        best = found["attacks"][0]
        return " ".join([*([] if best["finding"] == "copies" else texts), _of_attack(best)])
    if audit is not None:
        more = NOT_GENERATED if audit["extraction"] is None else NOT_ATTACKED
        return f"{texts[0]} {more}" if texts else _of_audit(audit)
    if found["verdicts"]:
        return _of_verdicts(found["verdicts"])
    return "No test of this run compares generated images with the training images."


def _of_attack(best: Mapping[str, Any]) -> str:
    size = f"{count(best['generated_images'])} generated images"
    if best["finding"] == "copies":
        return (
            f"Training images can be extracted from this model. Among {size} there are copies of "
            f"{count(best['different_images'])} of {count(best['training_images'])} training "
            f"images; among as many images that the model never saw, "
            f"{average(best['different_by_chance'])} would be matched as closely by chance."
        )
    few = best["finding"] == "inconclusive"
    if not best["copies"]:
        end = ": too few images for a conclusion." if few else "."
        return f"No copy of a training image was found among {size}{end}"
    end = "too few images for a conclusion" if few else "this is no evidence of copying"
    return (
        f"{count(best['copies'])} of {size} are as close to a training image as a copy is, and "
        f"about {average(best['copies_by_chance'])} are as close to images that the model never "
        f"saw: {end}."
    )


def _of_audit(audit: Mapping[str, Any]) -> str:
    train = f"{count(audit['flagged'])} of {count(audit['num_train'])} training images"
    heldout = f"{count(audit['heldout_flagged'])} of {count(audit['num_heldout'])} images that it"
    if audit["excess_interval"][0] > 0:
        return (
            f"The model has stored training images: it reproduces {train}, and {heldout} never saw."
        )
    return (
        f"There is no evidence that the model has stored training images: it reproduces {train}, "
        f"and {heldout} never saw."
    )


def _of_verdicts(verdicts: list[Mapping[str, Any]]) -> str:
    best = max(verdicts, key=lambda one: one["expected_hits"])
    first = max(best["listed"], key=lambda one: one["promised_precision"])
    share = f"{100 * first['promised_precision']:g} %"
    return (
        f"The training images were not available. {count(first['count'])} of "
        f"{count(best['num_candidates'])} different generated images are probably training images; "
        f"at least {share} of this list are expected to be."
    )


def remedies(mitigations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Ways to reduce the risk: those measured on this model first, then general ones."""
    measured = [
        f"{name.removeprefix('mitigate ')}: {100 * found['memorized']:.0f} % of the memorized "
        "prompts still give copies, measured on this model."
        for name, found in mitigations.items()
        if found.get("memorized") is not None
    ]
    general = [
        "Train on more images for as many steps, or for fewer steps: images that are seen less "
        "often are stored less often.",
        "Remove the images at most risk, and their duplicates, from the training set, train the "
        "model again, and repeat this test.",
        "Compare each output with the training images before it is released, and hold back copies.",
    ]
    return [*measured, *general]


def not_tested(sources: Sources, found: Mapping[str, Any]) -> list[str]:
    """The questions that this run leaves open."""
    sampled = found["audit"] and found["audit"]["extraction"]
    no_attack = "No generated images were compared with the training images."
    if sampled:
        no_attack = "No attack was run; the only generated images are the samples of the audit."
    missing = {
        no_attack: found["attacks"],
        "The training images were not examined one by one (audit=returns).": found["audit"],
        "Whether the set was used to train the model (dataset inference).": (
            found["audit"] and found["audit"]["inference"]
        ),
        "The view of an attacker without the training images (verdict=shadow).": found["verdicts"],
        "The risk per person: no table of persons, or of patients, was given.": found["subjects"],
        "Methods that reduce the risk.": sources.mitigations,
    }
    open_questions = [sentence for sentence, present in missing.items() if not present]
    return [*open_questions, "Other attacks, and other settings of the tests above."]


def limitations(found: Mapping[str, Any]) -> list[str]:
    """The limitations of what was tested."""
    own = []
    if found["audit"] is not None:
        own.append(
            "An image that the model reproduces from itself is at risk; it is not certain that an "
            "attacker obtains it."
        )
    if found["verdicts"]:
        own.append(
            "The list of outputs that are probably training images rests on a second model, which "
            "must store images as the tested one does."
        )
    return [*ALWAYS, *own]
