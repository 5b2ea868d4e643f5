"""Everything that limits or forbids a conclusion, shown before any number.

Each notice is one sentence, shown at the top of the page and above the table of the terminal. A
stage that finds such a limit writes it into its summary or its results; only this module turns it
into a sentence.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sidepipe.base.image_files import in_words
from sidepipe.stages.dpm.latent import drift
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.words import count, exact, excess_interval, rate

Manifest = Mapping[str, Any]


def notices(
    data: Manifest,
    dpm: Manifest,
    attacks: Sequence[Attack],
    labels: Mapping[str, Any] | None = None,
    empty: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Sentences on the data, on the model, on each attack, on prompts and on empty rows.

    data, dpm: manifests of the stages behind the first row. labels: how detect judged the images of
    prompts; None without prompts. empty: rows without a result, and the reasons.
    """
    model = dpm["summary"]
    found = [*_of_data(data["summary"]), *_of_alarm(model), *_of_model(model)]
    found += _of_attacks(attacks)
    if (fault := drift(model)) is not None:
        found.insert(0, f"{fault[0].upper()}{fault[1:]}.")
    rows: dict[str, list[str]] = {}
    for name, why in empty.items():
        rows.setdefault(why, []).append(name)
    without = [
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no result: {why}."
        for why, names in rows.items()
    ]
    return [*found, *_of_labels(labels or {}), *without]


def _of_data(summary: Mapping[str, Any]) -> list[str]:
    found = []
    if "table" in summary:
        found.append("The data are rows of a table: an image on this page is a row.")
    if skipped := summary.get("skipped"):
        files = _many(len(skipped), "image file")
        one = len(skipped) == 1
        found.append(f"{files} could not be read and {'is' if one else 'are'} left out.")
    if left_out := summary.get("left_out"):
        found.append(f"{in_words(dict(left_out))}.")
    return found


def _of_alarm(summary: Mapping[str, Any]) -> list[str]:
    """The notice of a training with dpm.stop_when_memorizing."""
    alarm = summary.get("alarm")
    if alarm is None or alarm["last"] is None:
        return []
    last, steps = alarm["last"], count(alarm["max_steps"])
    stopped = f"stopped at step {count(last['step'])} of {steps}, as the model memorizes"
    where = stopped if alarm["stopped_at"] else f"watched for memorization to its end, step {steps}"
    return [
        f"Training was {where}: {count(last['hits'])} of {count(last['images'])} refined samples "
        f"were hits, on {_many(last['different'], 'training image')}, with "
        f"{last['heldout_hits']:.1f} held-out hits ({_many(alarm['looks'], 'look')}, "
        f"{count(alarm['evaluations'])} evaluations, {alarm['seconds']:.1f} s)."
    ]


def _of_model(summary: Mapping[str, Any]) -> list[str]:
    found = summary.get("duplicates")
    if found is None:
        return []
    kept = found["across"] - found["dropped"]
    dropped, within, repeated = (found.get(name, 0) for name in ("dropped", "within", "repeated"))
    numbers = count(summary["num_heldout_images"]), count(summary["num_train_images"])
    sentences = {
        f"{count(kept)} of {numbers[0]} held-out images {_duplicate(kept)} training images and "
        f"{'was' if kept == 1 else 'were'} kept: thresholds calibrated on them miss copies, "
        "and hits on them are counted as held-out hits.": kept,
        f"{_many(dropped, 'held-out image')} {_duplicate(dropped)} training images and "
        f"{'is' if dropped == 1 else 'are'} left out.": dropped,
        f"{count(within)} of {numbers[1]} training images {_duplicate(within)} other training "
        "images; they are counted once where they are as close as a hit.": within,
        f"{_many(repeated, 'held-out image')} {'has' if repeated == 1 else 'have'} the pixels of "
        "another held-out image: they count twice in thresholds and held-out hits.": repeated,
    }
    return [sentence for sentence, number in sentences.items() if number]


def _duplicate(number: int) -> str:
    return "duplicates" if number == 1 else "duplicate"


def _many(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _of_attacks(attacks: Sequence[Attack]) -> list[str]:
    collapsed = [f"{a.name}: the model {a.collapse}." for a in attacks if a.collapse]
    collapsed += [f"{a.name}: {exact(a)}" for a in attacks if a.collapse and a.exact]
    vague = [
        f"{a.name}: {_many(a.num_images, 'image')} {'is' if a.num_images == 1 else 'are'} too few "
        "for a conclusion: the 95 % "
        f"interval of the excess is {excess_interval(a)} %."
        for a in attacks
        if a.has_truth and not a.collapse and a.inconclusive
    ]
    pictures = [f"{a.name}: {a.results['repeated']}." for a in attacks if a.results.get("repeated")]
    real = [f"{a.name}: {text}" for a in attacks if a.has_truth and (text := _doubtful(a))]
    with_truth = [attack for attack in attacks if attack.has_truth]
    found = [sentence for a in with_truth for sentence in _of_calibration(a.results)]
    found += [_of_floor(a, a.results["floor"]) for a in with_truth if "floor" in a.results]
    return [*collapsed, *real, *pictures, *dict.fromkeys(found), *vague]


def _doubtful(attack: Attack) -> str:
    """A sentence where the generated images are real ones, or training and held-out images swapped.

    Results of before version 5 of evaluate, and those of collapsed models, have none.
    """
    from sidepipe.memorization.collapse import real_in_words
    from sidepipe.memorization.excess import swapped

    copies = attack.results.get("exact_copies")
    if copies and (text := real_in_words(copies, attack.num_images)):
        return text
    if attack.collapse or not (text := swapped(attack.excess_interval)):
        return ""
    return (
        f"there are more held-out hits than hits {text}: are training and held-out images swapped, "
        "or of different kinds?"
    )


def _of_floor(attack: Attack, floor: Mapping[str, Any]) -> str:
    """The notice that an autoencoder limits how close an image can come."""
    median, most, within = (floor[name] for name in ("median", "most", "within_threshold"))
    side = "at least" if attack.metric == "cosine" else "at most"
    return (
        f"The autoencoder alone puts training images at {median:.3g} from themselves "
        f"({attack.gamma_in_words}, median; {side} {most:.3g} for 95 %), and a memorized code "
        f"decodes no closer: {rate(within)} of them are within the threshold of a hit, "
        f"{attack.threshold:.3g}, and only these can be found."
    )


def _of_calibration(results: Mapping[str, Any]) -> list[str]:
    """Notices on the false positive rates and on their thresholds."""
    from sidepipe.memorization.real import other_kind

    at, num_real = results["calibrated"], count(results["calibrated"][0]["num_real"])
    used = [row["false_positive_rate"] for row in at]
    found = _of_rates(results.get("asked_false_positive_rates", used), used, num_real)
    distances = results.get("near_duplicates", {"count": 0})
    if text := other_kind(distances):
        found.append(f"{text[0].upper()}{text[1:]}.")
    elif "train_distance" not in distances:
        found.append(
            "The artifact of reference was made before distances were measured, so that held-out "
            "images of another kind are not noticed: re-run the command."
        )
    near = distances["count"]
    if near > at[0]["real_passing"]:
        are, sets = ("is a near duplicate", "sets") if near == 1 else ("are near duplicates", "set")
        found.append(
            f"{count(near)} of {num_real} held-out images {are} of training images "
            f"({results['transform']}) and {sets} the threshold of a hit: copies that are less "
            "close are missed."
        )
    return found


def _of_labels(labels: Mapping[str, Any]) -> list[str]:
    """Notices on the false positive rate of copies among the images of prompts."""
    if "asked_false_positive_rate" not in labels:
        return []
    asked, used = labels["asked_false_positive_rate"], labels["false_positive_rate"]
    return _of_rates([asked], [used], count(labels["num_real"]))


def _of_rates(asked: Sequence[float], used: Sequence[float], num_real: str) -> list[str]:
    if list(asked) == list(used):
        return []
    rates = (" and ".join(map(rate, some)) for some in (asked, used))
    sentence = "{} held-out images are too few for a false positive rate of {}; used: {}."
    return [sentence.format(num_real, *rates)]
