"""Numbers in words: counts, shares, intervals, rules; a dash for a missing number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sidepipe.stages.report.attack import Attack

DASH = "–"  # noqa: RUF001 - shown for a missing number
NOT_KNOWN = "not known"  # the cost of images of another tool
COLLAPSED = "collapsed"  # shown instead of a finding: nearly all images are alike
MOST_SETS = 6  # the most sets whose hits are listed one by one
NBSP = "\N{NO-BREAK SPACE}"


def count(number: float | None) -> str:
    """A whole number with separated thousands."""
    return DASH if number is None else f"{number:,.0f}"


def percent(share: float, num_images: int) -> str:
    """A share in percent, to the precision of one image; without the sign."""
    decimals = max(0, math.ceil(math.log10(max(1, num_images) / 100)))
    # Rounding gives -0 for a share just below zero.
    return f"{round(100 * share, decimals) + 0.0:.{decimals}f}"


def rate(share: float) -> str:
    """A share in percent, to three digits: 0.1 %."""
    return f"{100 * share:.3g}{NBSP}%"


def rate_interval(ends: Sequence[float]) -> str:
    """Two shares in percent: `0.002 to 0.36 %`."""
    low, high = ends
    return f"{100 * low:.2g} to {100 * high:.2g}{NBSP}%"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with `places` decimals."""
    return DASH if value is None else f"{value:.{places}f}"


def with_interval(value: float | None, ends: Sequence[float] | None, places: int = 0) -> str:
    """A number and its interval: `52 (44 to 71)`."""
    if value is None or math.isnan(value):
        return DASH
    if ends is None:
        return decimals(value, places)
    low, high = ends
    return f"{value:,.{places}f} ({low:,.{places}f} to {high:,.{places}f})"


def percent_interval(share: float | None, ends: Sequence[float] | None) -> str:
    """A share and its interval in percent: `92.5 (85.1 to 97.0)`."""
    if share is None or ends is None:
        return DASH
    return with_interval(100 * share, [100 * end for end in ends], places=1)


def share(found: Mapping[str, Any]) -> str:
    """A counted share and its interval in percent: `92.5 (85.1 to 97.0)`."""
    return percent_interval(found["share"], found["interval"])


def with_error(value: float, error: float) -> str:
    """A number to three digits and its standard error or deviation to two: `0.124 ± 0.031`."""
    return f"{value:.3g} ± {error:.2g}"


def parameters(number: int) -> str:
    """A model's size: `268 thousand`, `113.7 million`."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number / 1e3:.0f} thousand"


def epochs(number: float) -> str:
    """Number of epochs, to at most three digits."""
    return count(number) if number >= 10 else f"{number:.2g}"


def evaluations(number: int | None) -> str:
    """A number of network evaluations, which only the model's own images have."""
    return NOT_KNOWN if number is None else count(number)


def per_thousand(number: float, evaluations: int | None) -> str:
    """A number per 1,000 network evaluations, to three digits."""
    return NOT_KNOWN if evaluations is None else f"{1000 * number / evaluations:#.3g}"


def threshold_rule(attack: Attack, threshold: float) -> str:
    """The condition to reach `threshold`: `≤ 0.0612`."""
    return f"{'≥' if attack.metric == 'cosine' else '≤'}{NBSP}{threshold:.3g}"


def band_rule(band: Sequence[float | None]) -> str:
    """A band's condition on gamma: `< 0.075`, `≥ 0.6` or `0.5 to 0.6`."""
    low, high = band
    if low is None:
        return f"<{NBSP}{high:g}"
    return f"≥{NBSP}{low:g}" if high is None else f"{low:g} to {high:g}"


def hit_rule(attack: Attack) -> str:
    """The rule of a hit: `RMS pixel difference ≤ 0.0612`."""
    return f"{attack.gamma_in_words} {threshold_rule(attack, attack.threshold)}"


def average(number: float) -> str:
    """A mean of whole numbers, to two digits if it is small: `1.3`, `0.17`, `12`."""
    return count(number) if number >= 9.5 or number == round(number) else f"{number:.2g}"


def hits(attack: Attack, which: str) -> str:
    """Hits and their share: `85 (4.25 %)`; held-out hits are a mean over sets, `1.3 (0.07 %)`."""
    number = average(attack.hits() if which == "train" else attack.heldout_hits)
    return f"{number} ({percent(attack.share(which), attack.num_images)} %)"


def heldout_sets(attack: Attack) -> str:
    """Hits on each held-out set, or their range if there are many: `0, 0, 3, 0, 0, 5`."""
    sets = attack.headline["heldout"]["sets"]
    if len(sets) > MOST_SETS:
        return f"{count(min(sets))} to {count(max(sets))}"
    return ", ".join(map(count, sets))


def heldout_head(attack: Attack) -> str:
    """The held-out images that are counted: `256 held-out images (mean of 6 sets)`."""
    sizes = attack.results["num_reference"]
    if attack.scale > 1:
        of = f"scaled from {count(sizes['heldout'])}"
        return f"{count(sizes['train'])} held-out images ({of})"
    several = f" (mean of {attack.num_sets} sets)" if attack.num_sets > 1 else ""
    return f"{count(sizes['heldout'])} held-out images{several}"


def at_least(attack: Attack) -> str:
    """The lower bound of reachable training images (95 % confidence): `207`, or `all 256`."""
    least, most = attack.results["rarefaction"]["at_least"], attack.num_different
    return f"all {count(most)}" if least >= most else count(least)


def excess(attack: Attack) -> str:
    """The excess in images and percent, with its interval: `+85 (4.25 %; 3.10 to 5.45)`."""
    return f"{signed_excess(attack)} ({excess_share(attack)} %; {excess_interval(attack)})"


def signed_excess(attack: Attack) -> str:
    """The excess in images with its sign: `+85`, `-0.67`."""
    # Rounding first makes 84.99999999999999 a whole number of images.
    excess = round(attack.excess, 6)
    return f"{'-' if excess < 0 else '+'}{average(abs(excess))}"


def excess_share(attack: Attack) -> str:
    """The excess share in percent: `4.25`."""
    return percent(attack.excess_share, attack.num_images)


def excess_interval(attack: Attack) -> str:
    """The excess share's interval in percent: `3.10 to 5.45`."""
    low, high = (percent(share, attack.num_images) for share in attack.excess_interval)
    return f"{low} to {high}"


def excess_images(attack: Attack) -> str:
    """The excess's interval in images: `62 to 109`."""
    low, high = (count(share * attack.num_images) for share in attack.excess_interval)
    return f"{low} to {high}"


def refinement(attack: Attack) -> str:
    """Number of refinement steps, their timesteps and added noise: `8 at t = 60, noise 1`."""
    if not attack.sampled or attack.settings["refine"]["name"] == "none":
        return DASH
    refine = attack.settings["refine"]
    levels = ", ".join(map(str, refine.get("levels", [refine.get("t")])))
    noise, kept = refine.get("noise", 0), refine.get("kept", 1)
    steps = refine.get("steps", len(refine.get("levels", [])))
    if (inner := refine.get("denoising_steps", 1)) > 1:
        steps = f"{steps} x {inner}"
    each = f", {kept} kept of each" if kept > 1 else ""
    if (relaxation := refine.get("relaxation", 1)) != 1:
        each = f", {relaxation:g} times as far{each}"
    return f"{steps} at t = {levels}{f', noise {noise:g}' if noise else ''}{each}"


def blind_score(trial: Mapping[str, Any]) -> str:
    """A trial's score: `12.5 %` of its images have a near duplicate, `90 groups`, or `apart`."""
    score = trial["score"]
    if trial["judged_by"] == "apart":
        return "apart" if score > 0 else "merging"
    return f"{score:.0f} groups" if trial["judged_by"] == "groups" else f"{100 * score:.1f} %"


def guided_timesteps(attack: Attack) -> str:
    """Guided timesteps: `all t`, `t ≥ 200`, `t 200 to 800`."""
    if not attack.guided:
        return DASH
    t_min, t_max = attack.settings["t_min"], attack.settings["t_max"]
    if t_max is None:
        return f"t ≥ {t_min}" if t_min else "all t"
    return f"t {t_min} to {t_max}"


def targets(attack: Attack) -> str:
    """The labels that the attack aims at, and their number."""
    if not attack.guided or "label" not in attack.manifests:
        return DASH
    number = attack.summary("extract")["num_targets"]
    if attack.settings["targets"] != "top_cohesion":
        weighted = ", weighted" if attack.settings["targets"] == "weighted" else ""
        return f"all {count(number)} labels{weighted}"
    return f"{count(number)} most cohesive, {rate(attack.settings['target_fraction'])}"


def finding(attack: Attack) -> str:
    """The finding in a sentence: the interval of the excess, or exact copies; never hits alone."""
    if attack.excess_interval[0] > 0 and not attack.collapse:
        are = "is" if attack.unique == 1 else "are"
        return (
            f"{reproduced(attack)} training {attack.unit}s {are} reproduced; "
            f"{reproduced(attack, 'heldout')} held-out ones."
        )
    number, item = count(attack.num_images), attack.item
    if attack.exact:
        return exact(attack)
    if attack.collapse:
        return f"No finding: nearly all {item}s are alike."
    if attack.inconclusive:
        return (
            f"Too few {item}s for a conclusion: {count(attack.hits())} of {number} generated "
            f"{item}s {'matches' if attack.hits() == 1 else 'match'} a training {item}."
        )
    if attack.hits() == 0 and attack.heldout_hits == 0:
        return f"No copy of a training {item} was found among {number} {item}s."
    return f"No evidence that training {item}s are reproduced."


def exact(attack: Attack) -> str:
    """The exact copies in a sentence: the training images, and the generated ones."""
    copies = attack.exact
    assert copies is not None
    item = attack.item
    images = f"{item} is" if copies["different"] == 1 else f"{item}s are"
    also = f"; {count(copies['heldout'])} copy held-out {item}s" if copies["heldout"] else ""
    return (
        f"{count(copies['different'])} training {images} reproduced exactly "
        f"({count(copies['train_alone'])} of {count(attack.num_images)} generated {item}s{also})."
    )


def reproduced(attack: Attack, which: str = "train") -> str:
    """The number of different real images hit, out of all: `214 of 256`."""
    most = attack.num_different if which == "train" else attack.num_units(which)
    return f"{average(attack.headline[which]['unique'])} of {count(most)}"
