"""Encoders: vectors from uint8 images, or from rows of a table, to compare them by.

Each has a metric, for `search`, and a preprocessing with a version, for the results. Weights are
never downloaded for SSCD, and are safetensors for other networks. Networks get 3 channels (gray is
repeated) in [0, 1], normalized as published.
"""

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from sidepipe.base.images import Images
from sidepipe.base.pretrained import fetching, folder_or_hub_id, one_line, read_object
from sidepipe.base.settings import require
from sidepipe.base.weights import require_finite
from sidepipe.features.preprocessing import IMAGENET, OPENAI, normalize, resize, resize_and_crop
from sidepipe.features.search import Metric

Device = str | torch.device
Batch = UInt8[np.ndarray, "b h w c"]
Vectors = Float[np.ndarray, "b d"]


class Encoder(ABC):
    """Base of encoders: `metric`, `transform`, `check` and `encode`.

    metric: how to compare its vectors; for "cosine" they are unit vectors, or zero. transform: name
    and version of its preprocessing. dtype: of the images that it takes.
    """

    metric: Metric
    transform: str
    dtype: type[np.generic] = np.uint8

    def check(self) -> None:  # noqa: B027 - most often nothing can be missing
        """Raises if `encode` could not work (files, hashes, packages); stages call it first."""

    def encode(
        self,
        images: Images,
        device: Device = "cpu",
        batch_size: int = 64,
    ) -> Float32[np.ndarray, "n d"]:
        """One vector per image. device and batch_size change the speed, not the result.

        Raises ValueError where a vector is not finite.
        """
        dtype, remedy = np.dtype(self.dtype).name, "rows of a table have features=rows"
        require(images.dtype == self.dtype, "images", dtype, str(images.dtype), remedy)
        require(images.ndim == 4 and images.size > 0, "images", "NHWC, not empty", images.shape)
        require(batch_size >= 1, "batch_size", ">= 1", batch_size)
        # np.array copies: torch warns of memory that cannot be written, as of a mapped file's.
        parts = [
            self._encode_batch(np.array(batch), device).astype(np.float32)
            for batch in (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        ]
        vectors = np.concatenate(parts)
        bad, name = np.flatnonzero(~np.isfinite(vectors).all(1)), f"features of {self.transform}"
        found, remedy = f"nan or inf for images {bad[:5].tolist()}", "check the encoder's weights"
        require(len(bad) == 0, name, "finite", found, remedy)
        return vectors

    @abstractmethod
    def _encode_batch(self, images: Batch, device: Device) -> Vectors: ...


class Pixels(Encoder):
    """Unit vectors whose cosine is the Pearson correlation of pixels.

    A constant image has no correlation: it gives the zero vector, whose cosine with all is 0.
    """

    metric = "cosine"
    transform = "pixels-centered-v1"

    def _encode_batch(self, images: Batch, device: Device) -> Vectors:
        # float64 sums of whole numbers are exact, so that a constant image becomes exactly zero.
        x = images.reshape(len(images), -1).astype(np.float64)
        x -= x.mean(1, keepdims=True)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm > 0, norm, 1)


class PixelsL2(Encoder):
    """Pixels scaled so that the Euclidean distance is their root-mean-square difference.

    In units of [0, 1]: black to white is 1 (Carlini et al., 2023, normalized l2).
    """

    metric = "l2"
    transform = "pixels-rms-v1"

    def _encode_batch(self, images: Batch, device: Device) -> Vectors:
        x = images.reshape(len(images), -1)
        return x / (255 * np.sqrt(x.shape[1]))


class Rows(Encoder):
    """Encoded rows of a table, scaled so that a column that differs adds at most 1.

    The squared distance is the sum over columns: 1 for another category, and for a numeric column
    the square of the difference of ranks, whose range is 1 (`base.table_encoding`).
    """

    metric = "l2"
    transform = "rows-v1"
    dtype = np.float32

    def _encode_batch(self, images: Batch, device: Device) -> Vectors:
        return images.reshape(len(images), -1) / 2


class RowDirections(Encoder):
    """Unit vectors of encoded rows of a table, for clusters by cosine."""

    metric = "cosine"
    transform = "row-directions-v1"
    dtype = np.float32

    def _encode_batch(self, images: Batch, device: Device) -> Vectors:
        x = images.reshape(len(images), -1).astype(np.float64)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norm > 0, norm, 1)


class Network(Encoder):
    """Unit vectors of a network, which is loaded at the first `encode` and then kept."""

    metric = "cosine"

    def _encode_batch(self, images: Batch, device: Device) -> Vectors:
        require(images.shape[-1] in (1, 3), "channels", "1 (gray) or 3 (RGB)", images.shape[-1])
        network = self._network.to(device)
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)
        with torch.no_grad():
            z = self._embed(network, self._prepare(x.expand(-1, 3, -1, -1)))
        return F.normalize(z.float(), dim=1).cpu().numpy()

    @cached_property
    @abstractmethod
    def _network(self) -> Any:
        """The network on the CPU, in eval mode."""

    @abstractmethod
    def _prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """The published preprocessing of images in [0, 1]."""

    @abstractmethod
    def _embed(self, network: Any, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """The network's vectors of prepared images."""


class SSCD(Network):
    """Copy detection descriptors (Pizzi et al., 2022) from the authors' TorchScript file.

    path: sscd_disc_mixup.torchscript.pt. A TorchScript file is a program: it is loaded only if its
    SHA-256 is `sha256`; None: refused, with the file's hash. size: height and width in pixels, 320
    as published; the aspect ratio is not kept.
    """

    def __init__(self, path: str, sha256: str | None, size: int = 320) -> None:
        self.path, self.sha256, self.size = Path(path).expanduser(), sha256, size
        self.transform = f"sscd-{size}-v1"

    def check(self) -> None:
        """FileNotFoundError without the file, ValueError unless its hash is the one set."""
        self._verified_bytes()

    def _verified_bytes(self) -> bytes:
        source = "sscd_disc_mixup.torchscript.pt of github.com/facebookresearch/sscd-copy-detection"
        if not self.path.is_file():
            raise FileNotFoundError(f"path must be a file, got {self.path}; download {source}")
        content = self.path.read_bytes()
        computed = hashlib.sha256(content).hexdigest()
        if self.sha256 is None:
            raise ValueError(
                f"sha256 must be set, got None; {self.path} has {computed}: compare it with a copy "
                f"from the authors' repository ({source}), then set sha256 to it"
            )
        if computed != self.sha256.lower():
            raise ValueError(
                f"sha256 must be the file's, got {self.sha256} but {self.path} has {computed}; the "
                f"file is damaged or another one: get {source}"
            )
        return content

    @cached_property
    def _network(self) -> Any:
        # The bytes that were verified, not the file again, which may have changed since.
        content = io.BytesIO(self._verified_bytes())
        with warnings.catch_warnings():
            # Deprecated, and the only official format that needs no model code.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            network = torch.jit.load(content, map_location="cpu").eval()
        require_finite(network.state_dict(), str(self.path))
        return network

    def _prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        return normalize(resize(x, self.size, self.size, "bilinear"), *IMAGENET)

    def _embed(self, network: Any, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return network(x)


class _Pretrained(Network):
    """A transformers model from a folder or, by its id "owner/name", from the Hugging Face hub."""

    model_types: tuple[str, ...]

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """ImportError, FileNotFoundError or ValueError if the model is missing or another kind."""
        folder = Path(self._source)
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"path must hold weights as *.safetensors, got {folder}")
        if folder.is_dir():
            read_object(folder / "config.json")
        kind = self._config.model_type
        require(kind in self.model_types, "path", " or ".join(self.model_types), kind)

    @property
    def _source(self) -> str:
        return str(folder_or_hub_id("path", self.path))

    @cached_property
    def _config(self) -> Any:
        with fetching("path", self._source):
            return _transformers().AutoConfig.from_pretrained(self._source)

    def _load(self, name: str) -> Any:
        self.check()
        logging = _transformers().logging
        verbosity = logging.get_verbosity()
        # transformers lists unused weights, such as CLIP's text half.
        logging.set_verbosity_error()
        try:
            network, report = getattr(_transformers(), name).from_pretrained(
                self._source, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers has no common error class
            raise ValueError(f"{self._source} cannot be read: {one_line(error)}") from None
        finally:
            logging.set_verbosity(verbosity)
        # Missing ones, and those of another shape, would be random, and only logged.
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        require(not missing, "path", "a model with all its weights", f"none for {missing[:3]}")
        require_finite(network.state_dict(), self._source)
        return network.eval()


class DINOv2(_Pretrained):
    """DINOv2's class token after the last layer norm (Oquab et al., 2023)."""

    transform = "dinov2-224-v1"
    model_types = ("dinov2", "dinov2_with_registers")

    @cached_property
    def _network(self) -> Any:
        return self._load("AutoModel")

    def _prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        # The config's image_size is that of pre-training, 518; position embeddings are resampled.
        return normalize(resize_and_crop(x, 256, 224), *IMAGENET)

    def _embed(self, network: Any, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return network(pixel_values=x).pooler_output


class CLIP(_Pretrained):
    """CLIP's image embedding, in the space shared with texts (Radford et al., 2021)."""

    model_types = ("clip", "clip_vision_model")

    @property
    def transform(self) -> str:
        """The preprocessing with the model's input size;

        ImportError or FileNotFoundError without it.
        """
        return f"clip-{self._size}-v1"

    @property
    def _size(self) -> int:
        return getattr(self._config, "vision_config", self._config).image_size

    @cached_property
    def _network(self) -> Any:
        return self._load("CLIPVisionModelWithProjection")

    def _prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        return normalize(resize_and_crop(x, self._size, self._size), *OPENAI)

    def _embed(self, network: Any, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return network(pixel_values=x).image_embeds


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "transformers is needed for DINOv2 and CLIP; pip install -e '.[features]'"
        ) from error
    return transformers
