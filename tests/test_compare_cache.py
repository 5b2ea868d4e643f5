"""Features that a comparison keeps on disk: the same result, and a killed call resumes."""

import numpy as np
import pytest

import sidepipe
from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization import real
from sidepipe.stages.reference import encoding

RNG = np.random.default_rng(0)
TRAIN, HELDOUT, OTHERS = RNG.integers(0, 256, (3, 40, 4, 4, 1), dtype=np.uint8)
GENERATED = np.concatenate([TRAIN[:5], OTHERS[:20]])


class Counted(PixelsL2):
    """Counts the images that it encodes, and stops before the image `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self._stop, self._count = stop, 0

    def _encode_batch(self, images, device):
        if self._stop is not None and self._count + len(images) > self._stop:
            raise KeyboardInterrupt
        self._count += len(images)
        return super()._encode_batch(images, device)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(encoding, "ENCODE_IMAGES", 8)
    monkeypatch.setattr(real, "ENCODE_IMAGES", 8)


def compared(folder=None, features=None, generated=GENERATED):
    return sidepipe.compare(
        generated, train=TRAIN, heldout=HELDOUT, features=features or Counted(), cache=folder
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_a_killed_call_resumes_to_the_same_bytes(tmp_path):
    plain = compared()
    compared(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "killed", Counted(stop=60))
    rest = Counted()
    found = compared(tmp_path / "killed", rest)
    assert 0 < rest._count < len(TRAIN) + len(HELDOUT) + len(GENERATED) - 40
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    for name in ("hits", "heldout_hits", "threshold", "unique", "excess"):
        assert getattr(found, name) == getattr(plain, name)
    assert found._hits == plain._hits
    assert plain.hits >= 5


def test_only_new_images_are_encoded(tmp_path):
    compared(tmp_path)
    again, other = Counted(), Counted()
    compared(tmp_path, again)
    assert again._count == 0
    compared(tmp_path, other, generated=OTHERS)
    assert len(OTHERS) <= other._count <= len(OTHERS) + 1  # one tells the number of dimensions


def test_a_file_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache must be a folder, or a new name, got"):
        compared(tmp_path / "file")
