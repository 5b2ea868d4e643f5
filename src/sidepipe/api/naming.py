"""Errors of shared checks name settings of the command line; the API names its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {
    "runtime.accelerator=auto": "device='auto'",
    "runtime.accelerator": "device",
    "data.on_duplicates=drop": "on_duplicates='drop'",
    "dpm.path": "path",
    "dpm.variant": "variant",
    "precision=32-true": "precision='32-true'",
}


@contextmanager
def as_arguments() -> Iterator[None]:
    """Raises ValueError and FileNotFoundError of the body with the arguments' names."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        for setting, argument in ARGUMENTS.items():
            text = text.replace(setting, argument)
        raise type(error)(text) from None
