"""Errors of shared checks name settings of the command line; the API names its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {
    "runtime.accelerator=auto": "device='auto'",
    "runtime.accelerator": "device",
    "data.on_duplicates=drop": "on_duplicates='drop'",
    "data.on_bad_file=skip": "on_bad_file='skip' leaves it out",
    "or data.source.folder=...": "or name another folder",
    "check data.source": "check the folder",
    "dpm.path": "path",
    "dpm.variant": "variant",
    "dpm.adapter": "adapter",
    "precision=32-true": "precision='32-true'",
}


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
