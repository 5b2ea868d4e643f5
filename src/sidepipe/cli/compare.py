"""`sidepipe compare`: the function `sidepipe.compare` as a command, which writes a folder.

Arguments are checked and images are read before torch is imported, unless `features` has settings.
"""

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sidepipe.api.comparing import WITHOUT_SETTINGS, compare
from sidepipe.api.tables import NEEDED, is_table
from sidepipe.base.files import require_free
from sidepipe.base.settings import build, did_you_mean, require, require_known

HELP = """\
sidepipe compare GENERATED train=FOLDER heldout=FOLDER [name=value ...]
sidepipe compare synthetic.csv train.csv heldout.csv [name=value ...]

Counts the generated images that copy training images. Any generator will do: the command reads
images alone. Each count stands next to the same count for held-out images, because images of one
kind look alike whether or not they were memorized. The difference is the excess, with its 95 %
interval.

  sidepipe compare generated/ train=train/ heldout=heldout/

  sidepipe compare synthetic.csv train.csv heldout.csv

Folders of images (see docs/reading-images.md for layouts and formats):
  generated            at least 20 images of the generator; also as generated=FOLDER
  train                the images that the generator was trained on
  heldout              at least 20 images of the same kind that it never saw, 1,000 or more for a
                       false positive rate of 0.1 %. Without them no threshold can be calibrated
                       and no count can be trusted, so the command requires them: keep some images
                       out of the training, or collect more from the same source.
  groups               optional: a CSV file with the columns file and group (patient, identity,
                       object) for all images of train and heldout. Counts and rates then go by
                       group: ten slices of one patient are one finding
  out                  a new folder for report.html, pairs.csv and result.json; by default
                       comparison, then comparison-2, and so on

Tables (see docs/tables.md): CSV, TSV or Parquet files with the same columns. The folder out has
rows.csv, a line per generated row, in place of pairs.csv.
  target=none          the column to predict, whose few whole numbers are then classes
  kinds.COLUMN=KIND    where the detected kind of a column is wrong: numeric, categorical, or the
                       values of an ordinal column in their order: kinds.size=small,medium,large
  on_unseen=error      where a generated row has a category that no real row has: error or keep
  on_duplicates=keep   where held-out rows are equal to training rows: error, drop or keep
  false_positive_rate  as for images; the other settings below are of images alone

Settings, with their defaults:
  features=pixels_l2   how images are compared: pixels_l2 (root-mean-square pixel difference),
                       pixels (correlation), and for images of 64 pixels or more
                       sscd features.path=FILE features.sha256=HASH, or
                       copydet features.path=outputs/descriptor/KEY; also dinov2 and clip
  false_positive_rate=0.001   the share of held-out images that may reach the threshold of a hit
  size=none            pixels per side, to which all images are resized; required where sizes differ
  resize=crop          crop keeps the central square of an image, stretch the whole image
  channels=none        1 converts all images to gray levels, 3 to RGB; required where they differ
  on_duplicates=error  where held-out images duplicate training images: error, drop or keep
  on_bad_file=error    where a file cannot be read: error or skip
  device=auto          where an encoder that is a network runs: auto, cpu, cuda or mps
  cache=OUT-cache      a folder for decoded images and their features: the same command resumes
                       after it was killed. The default, comparison-cache next to comparison, is
                       removed when the command succeeds; a folder of yours is kept, and later
                       commands reuse it; none keeps all images in memory
"""
NUMBERS: dict[str, tuple[type, str]] = {
    "size": (int, "a whole number"),
    "channels": (int, "1 or 3"),
    "false_positive_rate": (float, "a number"),
}
REQUIRED = {
    "generated": ("a folder of images that the generator made", "generated/"),
    "train": ("a folder of the images that the generator was trained on", "train/"),
    "heldout": (
        "a folder of images of the same kind that the generator never saw, which calibrate the "
        "threshold of a hit",
        "heldout/",
    ),
}
OUT = "comparison"
CACHE = "-cache"  # behind the name of the folder of the result


def main(arguments: Sequence[str], conf: Path) -> None:
    """Runs the command. conf: the folder of the configs, for the settings of encoders."""
    if not arguments or {"--help", "-h", "help"} & set(arguments):
        print(HELP, end="")
        return
    logging.basicConfig(format="%(message)s")
    for name in (
        "api.comparing",
        "api.tables",
        "base.image_reading",
        "engine.logs",
        "engine.resuming",
    ):
        logging.getLogger(f"sidepipe.{name}").setLevel(logging.INFO)
    logging.getLogger("sidepipe.api.control").setLevel(logging.ERROR)  # the table has warnings
    given = _given(arguments)
    out = _out(given.pop("out", None))
    if is_table(given["generated"]):
        _compare_tables(given, out, arguments)
        return
    settings = {n.partition(".")[2]: given.pop(n) for n in list(given) if n.startswith("features.")}
    values: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}
    if settings or given.get("features", "pixels") not in WITHOUT_SETTINGS:
        values["features"] = _encoder(given.get("features", ""), settings, conf)
    own = out.with_name(f"{out.name}{CACHE}")
    result = compare(values.pop("generated"), **{"cache": own, **values})
    result.save(out, command=f"sidepipe compare {shlex.join(arguments)}")
    if "cache" not in values:
        shutil.rmtree(own, ignore_errors=True)
    print(f"{result.table()}\nReport: {out / 'report.html'} (pairs.csv and result.json next to it)")


def _compare_tables(given: dict[str, str], out: Path, arguments: Sequence[str]) -> None:
    kinds = {n.partition(".")[2]: given.pop(n) for n in list(given) if n.startswith("kinds.")}
    kinds = {n: kind.split(",") if "," in kind else kind for n, kind in kinds.items()}
    values: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}
    if values.get("target") in ("none", "null"):
        values["target"] = None
    if kinds:
        values["kinds"] = kinds
    result = compare(values.pop("generated"), **values)
    result.save(out, command=f"sidepipe compare {shlex.join(arguments)}")
    print(f"{result.table()}\nReport: {out / 'report.html'} (rows.csv and result.json next to it)")


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """The text of each argument by its name; ValueError for unknown, repeated or missing ones."""
    known = [*signature(compare).parameters, "out"]
    given: dict[str, str] = {}
    for argument in arguments:
        name, is_named, value = argument.partition("=")
        if not is_named or "/" in name:
            name, value = "generated", argument
            if is_table(argument) and is_table(given.get("generated")):
                name = next((n for n in ("train", "heldout") if n not in given), name)
            if name in given:
                raise ValueError(
                    f"{argument} needs a name: only the folder of generated images has none; "
                    f"remedy: train={argument} or heldout={argument}"
                )
        name = name.lstrip("-+").replace("-", "_")
        if name not in known and not name.startswith(("features.", "kinds.")):
            raise ValueError(f"{name} is no argument of compare; {did_you_mean(name, known)}")
        if name in given:
            raise ValueError(f"{name} must be given once, got {given[name]} and {value}")
        given[name] = value
    for name, (meaning, example) in REQUIRED.items():
        if is_table(given.get("generated", "")) and name in NEEDED and not given.get(name):
            raise ValueError(f"{name} is required: {NEEDED[name]}; for example {name}={name}.csv")
        if not given.get(name):
            raise ValueError(f"{name} is required: {meaning}; for example {name}={example}")
    return given


def _value(name: str, text: str) -> Any:
    if name == "cache" and text.lower() in ("none", "null"):
        return None
    if name not in NUMBERS:
        return text
    if text.lower() in ("none", "null") and name != "false_positive_rate":
        return None
    kind, rule = NUMBERS[name]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {rule}, got {text!r}") from None


def _out(name: str | None) -> Path:
    """The folder of the result: the one named, or the first free name."""
    if name is not None:
        folder = Path(name).expanduser()
        require_free("out", folder)
        return folder
    names = (OUT if i == 1 else f"{OUT}-{i}" for i in range(1, sys.maxsize))
    return next(Path(name) for name in names if not Path(name).exists())


def _encoder(name: str, settings: Mapping[str, str], conf: Path) -> Any:
    """The encoder of conf/features/<name>.yaml with the settings given."""
    require_known("features", name, [path.stem for path in (conf / "features").glob("*.yaml")])
    config: Any = OmegaConf.to_container(OmegaConf.load(conf / "features" / f"{name}.yaml"))
    for setting, value in settings.items():
        known = sorted(config.keys() - {"_target_"})
        if setting not in known:
            remedy = did_you_mean(setting, known)
            raise ValueError(f"features.{setting} is no setting of features={name}; {remedy}")
        whole = isinstance(config[setting], int)
        name = f"features.{setting}"
        require(not whole or value.isdecimal(), name, "a whole number", value)
        config[setting] = int(value) if whole else value
    missing = [setting for setting, value in config.items() if value == "???"]
    if name == "copydet" and config["path"] is None:
        missing.append("path")
    if missing:
        raise ValueError(
            f"features.{missing[0]} is required by features={name}; for example "
            f"features.{missing[0]}=/my/{name}"
        )
    encoder = build(config)
    try:
        encoder.check()
    except (ValueError, FileNotFoundError) as error:  # it names its setting first
        known = "|".join(config)
        raise type(error)(re.sub(rf"^({known})\b", r"features.\1", str(error))) from None
    return encoder
