"""Rows of the comparison in words, from their settings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.words import count, rate

_LABELS = {
    "all": "clusters of the model's own images",
    "members": "the members of clusters of the model's own images",
    "repeats": "groups of near duplicates among the model's own images",
    "random": "labels dealt at random, a control",
    "original": "the attacker's own labeled images",
}
_SURROGATES = {
    "classifier": "a classifier of {labels} guides sampling",
    "posterior": "the closed-form posterior of {labels} guides sampling, without training",
    "lora": "the model is adapted by LoRA to {labels}",
    "base": "sampling is led away from the base model that was fine-tuned",
}


def described(attack: Attack) -> str:
    """How the attack generates its images, as one sentence that starts in lower case."""
    if not attack.sampled:
        resize = attack.settings["resize"]
        changed = {"crop": ", resized from their central squares", "stretch": ", resized"}
        folder = Path(attack.settings["folder"]).name
        return f"images of another tool, from “{folder}”{changed.get(resize, '')}"
    parts = [_guidance(attack), *_aims(attack), *_afterwards(attack)]
    return f"{'SIDE as published: ' if is_side(attack) else ''}{'; '.join(parts)}"


def is_side(attack: Attack) -> bool:
    """Whether this is SIDE: a classifier of clusters at every step, uniform labels."""
    settings = attack.settings
    return (
        settings["surrogate"] == "classifier"
        and _assigned(attack) == "all"
        and _classifier(attack, "noised", True) is True
        and _classifier(attack, "labels", "hard") == "hard"
        and settings.get("guide_through", "x_t") == "x_t"
        and settings["guidance_schedule"] == "constant"
        and settings["targets"] == "uniform"
        and not (settings["t_min"] or settings["t_max"] or settings.get("tuned"))
        and settings.get("rounds", 1) == 1
        and settings["refine"]["name"] == "none"
    )


def _guidance(attack: Attack) -> str:
    if not attack.guided:
        prompts = attack.settings.get("prompts")
        text = f"plain sampling with the prompts {prompts}" if prompts else "plain sampling"
        steps = attack.settings.get("num_inference_steps")
        return f"{text} in {count(steps)} steps" if steps else text
    labels = _LABELS.get(_assigned(attack), "labels")
    text = _SURROGATES[attack.settings["surrogate"]].format(labels=labels)
    if _classifier(attack, "noised", True) is False:
        text = text.replace("a classifier", "a classifier of clean images, trained on")
    if _classifier(attack, "labels", "hard") == "posterior":
        text = text.replace("a classifier", "a classifier that learns the posterior")
    if _setting(attack, "lora", "condition", "vector") == "trigger":
        text += ", each of which has a trigger string as its prompt"
    return text


def _aims(attack: Attack) -> list[str]:
    """Differences from the guidance of SIDE: targets, timesteps, strength."""
    if not attack.guided:
        return []
    settings, parts = attack.settings, []
    if settings["targets"] == "top_cohesion":
        parts.append(f"it aims at the {rate(settings['target_fraction'])} most cohesive labels")
    if settings["targets"] == "weighted":
        parts.append("it aims at cohesive, large clusters more often")
    if settings.get("guide_through") == "pred_x_0":
        parts.append("the surrogate takes the predicted clean image")
    if settings["guidance_schedule"] != "constant":
        parts.append("its strength depends on t")
    if settings["t_min"] or settings["t_max"]:
        end = settings["t_max"]
        parts.append(f"it guides at t >= {settings['t_min']}" + (f" and t <= {end}" if end else ""))
    return parts


def _afterwards(attack: Attack) -> list[str]:
    settings, parts = attack.settings, []
    if settings.get("tuned"):
        parts.append("trials choose its settings without the training images")
    if (covered := settings.get("covered")) is not None:
        repeat = f"{rate(covered)} of further images would repeat a known one"
        parts.append(f"it stops after the first of {settings['rounds']} rounds when {repeat}")
    elif settings.get("rounds", 1) > 1:
        parts.append(f"it works in {count(settings['rounds'])} rounds")
    if (refine := settings["refine"])["name"] != "none":
        how = _REFINE[refine["name"]](refine)
        parts.append(f"then refinement: each finished image is denoised {how}")
    return parts


def _cyclic(refine: Mapping[str, Any]) -> str:
    text = f"{refine['steps']} times from t = {refine['t']}"
    if (inner := refine.get("denoising_steps", 1)) > 1:
        text += f" in {inner} steps"
    share = refine.get("noise", 0)
    return text + (f", each time with {rate(share)} of its noise added" if share else "")


def _levels(refine: Mapping[str, Any]) -> str:
    return ", ".join(map(str, refine["levels"]))


def _relaxed(refine: Mapping[str, Any]) -> str:
    text = f"{_cyclic(refine)}, each time {refine['relaxation']:g} times as far"
    return f"{text}, and the last {refine['kept']} results are candidates"


def _union(refine: Mapping[str, Any]) -> str:
    text = f"{refine['steps']} times from each of t = {_levels(refine)}"
    return f"{text}, and the last {refine['kept']} results of each are candidates"


_REFINE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "fixed_point": _cyclic,
    "cyclic": _cyclic,
    "relaxed": _relaxed,
    "annealed": lambda refine: f"once from each of t = {_levels(refine)}",
    "union": _union,
}


def _assigned(attack: Attack) -> str:
    return _setting(attack, "label", "assign", "all")


def _classifier(attack: Attack, name: str, default: object) -> object:
    return _setting(attack, "classifier", name, default)


def _setting(attack: Attack, stage: str, name: str, default: Any) -> Any:
    manifest = attack.manifests.get(stage)
    return manifest["settings"].get(name, default) if manifest else default
