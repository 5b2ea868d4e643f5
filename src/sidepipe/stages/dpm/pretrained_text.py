"""Stage `dpm` that takes a text-conditional model trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.pretrained import read_object
from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.adapters import fuse_adapter
from sidepipe.models.contrast import require_comparable
from sidepipe.models.schedules import SCHEDULER, log_replaced
from sidepipe.stages.data.stage import Data
from sidepipe.stages.dpm.pretrained import Pretrained
from sidepipe.stages.dpm.stage import BASE

if TYPE_CHECKING:
    from sidepipe.models.text.model import TextModel


@dataclass(frozen=True, kw_only=True)
class PretrainedTextDPM(Pretrained):
    """A text-to-image pipeline of others, or one of a model trained here."""

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        self._check_family("stable_diffusion")

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        from sidepipe.models.text.checks import check_pipeline

        if (folder := self._local_folder()) is not None:
            check_pipeline(folder, self.variant)
            self._adapter_file(folder)
            if (base := self._check_base(folder)) is not None:
                check_pipeline(base)

    def scheduler(self) -> Any | None:
        from sidepipe.models.text.checks import checked_schedule

        return None if (folder := self._local_folder()) is None else checked_schedule(folder)

    def check_prompts(
        self, stage: str, *, by_token: bool = False, by_attention: bool = False
    ) -> None:
        from sidepipe.models.text.checks import require_guided

        if (folder := self._local_folder()) is not None:
            require_guided(folder, stage, by_token=by_token, by_attention=by_attention)

    def prompt_tokens(self) -> int | None:
        if (folder := self._local_folder()) is None:
            return None
        most = read_object(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
        return None if most is None else int(most) - 2

    def check_images(self, data: Stage) -> None:
        from sidepipe.models.text.checks import image_shape

        assert isinstance(data, Data)
        if (folder := self._local_folder()) is None:
            return
        channels, *sides = image_shape(folder, self.variant)
        square = sides[0] == sides[1]
        rule = f"the size of the model's images, {' x '.join(map(str, sides))}"
        remedy = f"set data.size={sides[0]}" if square else "choose data=none"
        fits = sides == [data.size, data.size] or (data.is_empty and not square)
        require(fits, "data.size", rule, data.size, remedy)
        rule, remedy = f"{channels}, as of the model's images", f"set data.channels={channels}"
        require(data.channels == channels, "data.channels", rule, data.channels, remedy)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models.text.checks import check_pipeline
        from sidepipe.models.text.pipeline import found_folder, load_model, save_model

        about = self._write_split(job)[2]
        source = found_folder(self.path, self.revision, self.variant)
        check_pipeline(source, self.variant)
        model = load_model(source, variant=self.variant)
        path = source / "scheduler" / SCHEDULER
        log_replaced(read_object(path), str(path))
        if self.has_base:
            self._save_base(model, job.folder / BASE)
        if (file := self._adapter_file(source)) is not None:
            fuse_adapter(model.networks, file)
        save_model(model, job.folder / "model")
        return {
            **about,
            "num_parameters": model.num_parameters(),
            "files": self._fingerprint(source),
        }

    def _save_base(self, model: TextModel, folder: Path) -> None:
        """Writes the base: the model itself, before its adapter is fused, or the one at `base`."""
        from sidepipe.models.text.checks import check_pipeline
        from sidepipe.models.text.pipeline import found_folder, load_model, save_model

        base = model
        if self.base is not None:
            check_pipeline(source := found_folder(self.base, None))
            base = load_model(source)
            configs = model.network.config, base.network.config
            require_comparable(configs[0], model.alphas_cumprod, configs[1], base.alphas_cumprod)
        save_model(base, folder)
