"""Loading weights only into networks that they fit exactly.

A missing or unexpected key, a wrong shape and a weight that is not finite are errors: a network
with some random weights still makes images, and an attack on it finds nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.pretrained import NOT_FUSED, junk_in, one_line, read_object
from sidepipe.base.settings import require

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

# Prefixes of names by wrappers: data parallelism, torch.compile, whole pipelines.
PREFIXES = ("module.", "_orig_mod.", "unet.", "model.", "vae.", "text_encoder.")
# Names of attention layers before diffusers 0.12.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
SHOWN = 3


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Every tensor of the files by its name, on the CPU.

    Raises ValueError for a file that is damaged or holds anything else, and for a tensor that is
    not finite.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = _read(path)
        require_finite(found, str(path))
        tensors |= found
    return tensors


def read_shapes(files: Sequence[Path]) -> Shapes | None:
    """The shape of every tensor, from headers alone; None where a file has none."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if path.suffix != ".safetensors":
            return None
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # of many classes
            raise _damaged(path, error) from None
    return shapes


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        log.warning("%s is a pickle; it is read with weights_only=True", path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many classes
        raise _damaged(path, error) from None
    require(isinstance(found, dict), str(path), "tensors by name", type(found).__name__)
    others = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    require(not others, str(path), "tensors by name and nothing else", others[:SHOWN])
    return found


def _damaged(path: Path, error: Exception) -> ValueError:
    with path.open("rb") as file:
        junk = junk_in(file.read(512))
    if junk is not None:
        return ValueError(f"{path} must hold weights, got {junk[0]}; {junk[1]}")
    return ValueError(
        f"{path} cannot be read as weights: {one_line(error)}; remedy: copy it again, or save it "
        "as safetensors"
    )


def common_prefix(names: Collection[str]) -> str:
    """The known prefixes that all names have, such as "module._orig_mod."."""
    prefix = ""
    while names and (
        more := [p for p in PREFIXES if all(name.startswith(prefix + p) for name in names)]
    ):
        prefix += more[0]
    return prefix


def log_prefix(found: Collection[str], names: Collection[str], where: str) -> None:
    """Logs the prefix that is stripped from all names."""
    if prefix := common_prefix(found).removesuffix(common_prefix(names)):
        log.info("%s: every name begins with %s, which is removed", where, prefix)


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError naming the first tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        # torch has no isfinite for float8.
        wide = value.float() if value.is_floating_point() and value.itemsize == 1 else value
        if value.is_floating_point() and not wide.isfinite().all():
            kind = "NaN" if wide.isnan().any() else "infinity"
            count = int((~wide.isfinite()).sum())
            raise ValueError(
                f"{name} of {where} must be finite, got {kind} ({count} of {value.numel()} values "
                "are not finite); remedy: use an earlier checkpoint of the same training"
            )


def check_weights(network: Any, files: Sequence[Path]) -> None:
    """Raises ValueError unless weights in safetensors fit the network by name and shape."""
    if (shapes := read_shapes(files)) is not None:
        network_names(shapes_of(network.state_dict()), shapes, str(files[0]))


def network_names(expected: Shapes, found: Shapes, where: str) -> dict[str, str]:
    """The network's name of every tensor found; ValueError unless both have the same names."""
    prefix = common_prefix(found).removesuffix(common_prefix(expected))
    names = {name: _present_name(name.removeprefix(prefix), expected) for name in found}
    missing = [name for name in expected if name not in names.values()]
    unexpected = [name for name, new in names.items() if new not in expected]
    shapes = [
        f"{name} {list(found[name])}, not {list(expected[new])}"
        for name, new in names.items()
        if new in expected and tuple(found[name]) != tuple(expected[new])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    wrong = [f"{len(rows)} {kind} ({_first(rows)})" for kind, rows in kinds.items() if rows]
    if any(".lora_" in name for name in unexpected):
        raise ValueError(f"the weights in {where} must be of one network, got {NOT_FUSED}")
    if wrong or len(set(names.values())) < len(names):
        raise ValueError(
            f"the weights in {where} must fit the network of its config.json, got "
            f"{', '.join(wrong) or 'two weights of one name'}; remedy: use the config and the "
            "weights of the same model"
        )
    return names


def _first(rows: Sequence[str]) -> str:
    return ", ".join(rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")


def _present_name(name: str, expected: Collection[str]) -> str:
    """The network's present name where `name` is an old one of an attention layer."""
    parts = name.split(".")
    if name in expected or len(parts) < 2 or parts[-2] not in OLD_NAMES:
        return name
    new = ".".join([*parts[:-2], OLD_NAMES[parts[-2]], parts[-1]])
    return new if new in expected else name


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def load_exactly(
    network: nn.Module, files: Sequence[Path], only: Collection[str] | None = None
) -> None:
    """Loads the files' tensors, which must fit exactly, into the network, in its own dtype.

    only: the names in the files where they are not all of the network. Raises ValueError.
    """
    where, tensors = str(files[0]), read_tensors(files)
    there = network.state_dict()
    expected = there if only is None else {name: there[name] for name in only}
    names = network_names(shapes_of(expected), shapes_of(tensors), where)
    log_prefix(tensors, names.values(), where)
    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors.values()} - {"float32", "int64"}
    if dtypes:
        log.info("%s: converting weights of %s", where, " and ".join(sorted(dtypes)))
    fitting = {new: tensors[name].to(expected[new].dtype) for name, new in names.items()}
    network.load_state_dict(fitting, strict=only is None, assign=True)


def built(kind: Any, config: Mapping[str, Any], where: str) -> Any:
    """A diffusers network of a config, on the meta device: without memory or weights.

    Raises ValueError, which names the config, where the network's constructor fails.
    """
    import torch

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
            return kind.from_config(dict(config))
    except Exception as error:  # of many classes
        raise ValueError(f"{where} cannot be built as {kind.__name__}: {one_line(error)}") from None


def read_network(kind: Any, folder: Path, files: Sequence[Path]) -> Any:
    """The diffusers network that `folder` describes, with the files' weights, in eval mode."""
    import torch

    config = read_object(folder / "config.json")
    network = built(kind, config, str(folder / "config.json"))
    buffers = {name for name, _ in network.named_buffers()} - set(network.state_dict())
    if buffers:  # the constructor computes these, and files do not hold them
        with torch.random.fork_rng(devices=[]):
            network = kind.from_config(config)
    load_exactly(network, files)
    return network.eval()
