"""The cost of an attack's images, from the artifacts that they were made from."""

from typing import Any

from sidepipe.engine.artifacts import Artifact


def cost(extract: Artifact) -> dict[str, Any]:
    """Evaluations of the network for the attack's images, and for the synthetic images before them.

    All are None for images of another tool. Plain sampling needs no synthetic images, and neither
    do labels of original images.
    """
    summary, generate = extract.summary, extract.inputs.get("generate")
    names = ["unet_forwards", "surrogate_gradients", "gradient_cost", "network_evaluations"]
    if "training_evaluations" in summary:  # of a model adapted to the labels
        names.append("training_evaluations")
    spent = {name: summary[name] for name in names}
    if summary["network_evaluations"] is None:  # images of another tool
        return {**spent, "synthetic_evaluations": None}
    if generate is None or original_of(extract) is not None:
        return {**spent, "synthetic_evaluations": 0}
    return {**spent, "synthetic_evaluations": generate.summary["unet_forwards"]}


def original_of(extract: Artifact) -> Artifact | None:
    """The original images that the attack's labels come from; None where it has no such labels."""
    label = extract.inputs.get("label")
    return None if label is None else label.inputs.get("original")
