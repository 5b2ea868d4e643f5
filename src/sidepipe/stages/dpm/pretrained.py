"""Stage `dpm` that takes a checkpoint trained elsewhere, instead of training a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe.base.files import sha256_of
from sidepipe.base.pretrained import fingerprint, folder_or_hub_id, parts_of, read_object
from sidepipe.base.settings import require
from sidepipe.base.table_encoding import FILES
from sidepipe.engine.kinds import check_kind
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.adapters import NONE, adapter_file, read_adapter
from sidepipe.models.checkpoint import (
    OPTION,
    check_checkpoint,
    load_checkpoint,
    network_config,
    network_of,
    num_classes,
    save_parts,
)
from sidepipe.models.contrast import require_comparable
from sidepipe.models.families import ENCODING, INDEX, require_family
from sidepipe.models.pixels import schedule_of
from sidepipe.models.schedules import schedule_from
from sidepipe.stages.data.stage import Data
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import BASE, DPM, write_classes


@dataclass(frozen=True, kw_only=True)
class Pretrained(DPM):
    """A checkpoint trained elsewhere: its path, and whether it changed.

    path: a folder saved by `save_pretrained`, or a hub id (fetched when the stage runs). revision:
    of the hub id. variant: of the weight files, "fp16", "non_ema", "ema" or "default" for the file
    without one; None for the only one. The training subset must be the images that the model was
    trained on. adapter: a file or folder of a LoRA, which is fused; "none" for the base model
    although an adapter lies in its folder. base: the folder or hub id of the model that it was
    fine-tuned from, which the artifact keeps; None where it is not known, and with an adapter for
    the checkpoint without it.
    """

    path: str
    revision: str | None
    variant: str | None
    adapter: str | None = None
    base: str | None = None

    @property
    def has_base(self) -> bool:
        return self.base is not None or self.adapter not in (None, NONE)

    def _local_folder(self) -> Path | None:
        """The folder that `path` names, None for a hub id; FileNotFoundError if it is neither."""
        found = folder_or_hub_id("dpm.path", self.path)
        return found if isinstance(found, Path) else None

    def _check_family(self, option: str) -> None:
        """Raises unless `dpm=<option>` takes the pipeline, where it is on this machine."""
        if (folder := self._local_folder()) is not None:
            require_family(folder, option)
            adapter_file(folder, self.adapter)
        if (base := self._local_base()) is not None:
            require_family(base, option)

    def _local_base(self) -> Path | None:
        """The folder that `base` names, None for a hub id and where it names nothing."""
        found = None if self.base is None else folder_or_hub_id("dpm.base", self.base)
        return found if isinstance(found, Path) else None

    def _check_base(self, folder: Path) -> Path | None:
        """The base, where it is on this machine, after a comparison with the model in `folder`."""
        if (base := self._local_base()) is not None:
            schedules = [schedule_of(path, learned_variance=True) for path in (folder, base)]
            own, other = map(schedule_from, schedules)
            configs = [network_config(path) for path in (folder, base)]
            require_comparable(configs[0], own.alphas_cumprod, configs[1], other.alphas_cumprod)
        return base

    def _adapter_file(self, folder: Path) -> Path | None:
        """The adapter of the checkpoint in `folder`, None without one, after the checks."""
        if (file := adapter_file(folder, self.adapter)) is not None:
            read_adapter(file)
        return file

    def _fingerprint(self, folder: Path) -> dict[str, str]:
        """SHA-256 of the files of the checkpoint and of its adapter."""
        file = adapter_file(folder, self.adapter)
        base = self._local_base()
        others = {} if base is None else fingerprint(base)
        adapters = {} if file is None else {"adapter": sha256_of(file)}
        return fingerprint(folder) | adapters | {f"base/{n}": hash_ for n, hash_ in others.items()}

    def scheduler(self) -> Any | None:
        if (folder := self._local_folder()) is None:
            return None
        return schedule_of(folder, learned_variance=True)

    def _take_all(self, partitions: str) -> None:
        # A wrong guess counts training images as unseen, which hides every copy.
        raise ValueError(
            f"dpm.train_partitions must name the partitions that the checkpoint was trained on, of "
            f"{partitions}, got null; remedy: 'dpm.train_partitions=[train]'"
        )

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        folder, base = Path(self.path).expanduser(), Path(self.base or self.path).expanduser()
        there = folder.is_dir() and base.is_dir()
        if not there or self._fingerprint(folder) == summary["files"]:
            return None  # a finished artifact does not need the checkpoint
        return (
            f"the checkpoint {folder} changed since this artifact was made, and results would be "
            "of the old one; remedy: restore it, or delete the artifact's folder to read it again"
        )


def require_encoding(folder: Path, data: Path) -> None:
    """Raises ValueError unless a model of rows encodes them as the data artifact does."""
    own, theirs = ([sha256_of(place / name) for name in FILES] for place in (data, folder))
    rule = f"the table that the model of {folder.parent} was trained on"
    require(own == theirs, "data", rule, "another encoding of its columns")


@dataclass(frozen=True, kw_only=True)
class PretrainedDPM(Pretrained):
    """A diffusers checkpoint without text, attacked as it is.

    null_class: the class of a UNet2DModel that stands for none, as training with dropped classes
    leaves it; None where no class does. A DiT has its own.
    """

    null_class: int | None = None

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        data = upstream["data"]
        assert isinstance(data, Data)
        if data.is_empty:
            for name in ("num_train_images", "train_partitions"):
                remedy = "there are no images to split with data=none"
                value = getattr(self, name)
                require(value is None, f"dpm.{name}", "null", value, remedy)
        self._check_family(OPTION)
        if not data.is_empty and (folder := self._local_folder()) is not None:
            of_rows = ENCODING in parts_of(read_object(folder / INDEX))
            check_kind(upstream, "this model", of_rows=of_rows)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        if (folder := self._local_folder()) is not None:
            check_checkpoint(folder, self.variant, data.size, data.channels)
            self._adapter_file(folder)
            self._check_null_class(folder)
            if (base := self._check_base(folder)) is not None:
                check_checkpoint(base, None, data.size, data.channels)

    def _check_null_class(self, folder: Path) -> None:
        rows = network_config(folder).get("num_class_embeds")
        name, given = "dpm.null_class", self.null_class
        rule = "null" if rows is None else f"null or a class in [0, {rows})"
        remedy = "a DiT has its own null class, and other models without classes have none"
        fits = given is None or (rows is not None and 0 <= given < rows)
        require(fits, name, rule, given, "" if rows else remedy)

    def has_null_class(self) -> bool:
        folder = self._local_folder()
        has_own = folder is not None and "num_embeds_ada_norm" in network_config(folder)
        return has_own or self.null_class is not None

    def num_classes(self) -> int | None:
        return None if (folder := self._local_folder()) is None else num_classes(folder)

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_data(data, upstream, runtime)
        folder = self._local_folder()
        if folder is not None and (folder / ENCODING).is_dir():
            require_encoding(folder / ENCODING, data)

    def run(self, job: Job) -> dict[str, Any]:
        about = self._write_split(job)[2]
        _, size, _, channels = load_images(job.inputs["data"]).shape
        parts = load_checkpoint(
            self.path, self.revision, self.variant, size, channels, adapter=self.adapter
        )
        network = network_of(parts)
        if self.has_base:
            base = load_checkpoint(self.base or self.path, None, None, size, channels, NONE)
            own, other = (schedule_from(each["scheduler"]) for each in (parts, base))
            configs = network.config, network_of(base).config
            require_comparable(configs[0], own.alphas_cumprod, configs[1], other.alphas_cumprod)
            save_parts(base, job.folder / BASE)
        save_parts(parts, job.folder / "model")
        if self.null_class is not None:
            write_classes(job.folder, self.null_class)
        source = Path(self.path).expanduser()
        return {
            **about,
            "num_parameters": network.num_parameters(),
            "files": self._fingerprint(source) if source.is_dir() else {},
        }
