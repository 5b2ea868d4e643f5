"""What an attack's images cost, as the artifacts that they were made from say."""

from pathlib import Path
from typing import Any

from sidepipe.engine.artifacts import read_manifest


def cost(extract: Path) -> dict[str, Any]:
    """What the attack's images cost, in evaluations of the network, and N_syn before them.

    Plain sampling needs no synthetic images, nor does who has labeled images.
    """
    manifest = read_manifest(extract)
    assert manifest is not None  # an input is finished
    names = ("unet_forwards", "surrogate_gradients", "gradient_cost", "network_evaluations")
    spent = {name: manifest["summary"][name] for name in names}
    if "training_evaluations" in manifest["summary"]:  # of a model adapted to the labels
        spent["training_evaluations"] = manifest["summary"]["training_evaluations"]
    generate = behind(extract, "generate")
    if generate is None or behind(extract, "label", "original"):
        return {**spent, "synthetic_evaluations": 0}
    synthetic = read_manifest(generate)
    assert synthetic is not None
    return {**spent, "synthetic_evaluations": synthetic["summary"]["unet_forwards"]}


def behind(artifact: Path, *stages: str) -> Path | None:
    """The artifact that one was made from, input by input; None where there is none."""
    for stage in stages:
        inputs = (read_manifest(artifact) or {"inputs": {}})["inputs"]
        if stage not in inputs:
            return None
        artifact = artifact.parents[1] / stage / inputs[stage]
    return artifact
