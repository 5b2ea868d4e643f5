"""Errors of shared checks name settings of the command line; the API names its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike
from pathlib import Path

from sidepipe.base.settings import require

ARGUMENTS = {
    "runtime.accelerator=auto": "device='auto'",
    "runtime.accelerator": "device",
    "data.on_duplicates=drop": "on_duplicates='drop'",
    "data.on_bad_file=skip": "on_bad_file='skip' leaves it out",
    "or data.source.folder=...": "or name another folder",
    "check data.source": "check the folder",
    "dpm.path": "path",
    "dpm must be stable_diffusion for": "path must be a model without text, which load takes, got",
    ", got 'pretrained'; set dpm=stable_diffusion": (
        "; remedy: run the command sidepipe dpm=stable_diffusion dpm.path=FOLDER"
    ),
    "dpm.variant": "variant",
    "dpm.adapter": "adapter",
    "dpm.base": "base",
    "set dpm.null_class if one of its classes stands for none; or surrogate=none": (
        "pass null_class to sidepipe.load if one of its classes stands for none"
    ),
    "precision=32-true": "precision='32-true'",
}


def require_whole(**arguments: object) -> None:
    """Raises ValueError unless the named arguments are whole numbers; a bool is none."""
    for name, value in arguments.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        require(whole, name, "a whole number", value)


def require_numbers(**arguments: object) -> None:
    """Raises ValueError unless the named arguments are numbers; a bool is none."""
    for name, value in arguments.items():
        require(isinstance(value, Real) and not isinstance(value, bool), name, "a number", value)


def as_path(name: str, value: object) -> Path:
    """A path given as text or as a Path; else ValueError."""
    require(isinstance(value, str | PathLike), name, "a path, as text or a pathlib.Path", value)
    return Path(str(value)).expanduser()


def as_new_file(name: str, value: object) -> Path:
    """The path of a file to write or replace; FileNotFoundError where its folder is missing."""
    file = as_path(name, value)
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{name} must be a file in an existing folder, got {file}; remedy: make {file.parent}"
        )
    return file


@contextmanager
def as_arguments(name: str = "") -> Iterator[None]:
    """Raises ValueError and FileNotFoundError of the body with the arguments' names.

    name: of the argument that the body reads, to begin the message with.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = f"{name}: {error}" if name else str(error)
        for setting, argument in ARGUMENTS.items():
            text = text.replace(setting, argument)
        raise type(error)(text) from None
