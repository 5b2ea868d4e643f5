"""A checkpoint that is not as torch wrote it is an error with file and remedy."""

import os

import pytest
import torch
from tests.tiny import DIGITS, RUNTIME, SETTINGS

from sidepipe.engine.checkpoints import require_whole
from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.trained import TrainDPM


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last byte missing": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": flip_one_bit,
    "text": lambda path: path.write_text("<html>not found</html>"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    torch.save({"weight": torch.randn(5000)}, path)
    require_whole(path)
    DAMAGE[damage](path)
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged .*; remedy: restore it, or delete"
    ):
        require_whole(path)


def test_a_training_does_not_start_over_or_resume_silently(tmp_path):
    (tmp_path / "data").mkdir()
    DIGITS.run(Job(tmp_path / "data", {}, RUNTIME))
    (tmp_path / "dpm").mkdir()
    (tmp_path / "dpm/last.ckpt").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match=f"{tmp_path}/dpm/last.ckpt is damaged") as raised:
        TrainDPM(**SETTINGS).run(Job(tmp_path / "dpm", {"data": tmp_path / "data"}, RUNTIME))
    assert "to train from the first step" in str(raised.value)
    assert not (tmp_path / "dpm/metrics.csv").exists()
    (tmp_path / "dpm/last.ckpt").unlink()
    TrainDPM(**SETTINGS).run(Job(tmp_path / "dpm", {"data": tmp_path / "data"}, RUNTIME))
    require_whole(tmp_path / "dpm/last.ckpt")
