"""Models of table rows as checkpoints: saved, read, and sampled to valid rows."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler

from sidepipe.base.table_encoding import Encoding
from sidepipe.base.table_kinds import schema_of
from sidepipe.base.tables import conform
from sidepipe.diffusion.mixtures import Mixture
from sidepipe.diffusion.sampler import ddim
from sidepipe.models.checkpoint import check_checkpoint, denoiser_of, read_parts, save_parts
from sidepipe.models.exact import exact_parts
from sidepipe.models.tables import RowEncoding, RowMLP

FRAME = pd.DataFrame(
    {
        "age": ["31", "47", "", "22", "58", "40"],
        "job": ["cook", "nurse", "cook", "smith", "nurse", "smith"],
        "height": ["1.71", "1.80", "1.64", "1.75", "1.59", "1.68"],
    }
)
Y = torch.zeros(8).long()


def encoded():
    """The rows and their encoding."""
    schema = schema_of({"train": FRAME})
    frame = conform("train", FRAME, schema)
    encoding = Encoding.fit(frame, schema)
    return encoding.encode(frame), encoding


def scheduler():
    return DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def trained_parts():
    _, encoding = encoded()
    torch.manual_seed(0)
    network = RowMLP(in_channels=encoding.width, width=8, num_blocks=1).eval()
    return {"unet": network, "encoding": RowEncoding(encoding), "scheduler": scheduler()}


def exact_rows():
    rows, encoding = encoded()
    means = torch.from_numpy(rows).double()
    mixture = Mixture(means, torch.zeros(rows.shape[1]).double())
    parts = exact_parts(mixture, (1, 1, rows.shape[1]), scheduler())
    return {**parts, "encoding": RowEncoding(encoding)}


@pytest.mark.parametrize("make", [trained_parts, exact_rows])
def test_a_saved_model_predicts_the_same_and_keeps_its_columns(tmp_path, make):
    parts = make()
    save_parts(parts, tmp_path)
    check_checkpoint(tmp_path, None, 1, 1)
    check_checkpoint(tmp_path, None, None, None)
    read, made = denoiser_of(read_parts(tmp_path)), denoiser_of(parts)
    x_t = torch.randn(8, *made.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(read.eps_fn(Y)(x_t, 20), made.eps_fn(Y)(x_t, 20))
    assert read.encoding.schema == made.encoding.schema
    assert read.image_dtype == np.float32


def test_the_exact_model_of_rows_gives_only_these_rows_back():
    rows, encoding = encoded()
    denoiser = denoiser_of(exact_rows())
    x_t = torch.randn(8, *denoiser.shape, generator=torch.Generator().manual_seed(2))
    x_0 = ddim(denoiser.eps_fn(Y), x_t, denoiser.timesteps(50), denoiser.alphas_cumprod)
    made = denoiser.decode(x_0).numpy().reshape(8, -1)
    known = {row.tobytes() for row in rows}
    assert {row.tobytes() for row in made} <= known
    pd.testing.assert_frame_equal(
        encoding.decode(made).drop_duplicates().sort_values("height", ignore_index=True),
        encoding.decode(np.unique(made, axis=0)).sort_values("height", ignore_index=True),
    )


def test_decoding_gives_the_nearest_row_and_decodes_no_further():
    rows, _ = encoded()
    denoiser = denoiser_of(trained_parts())
    near = torch.from_numpy(rows).reshape(-1, *denoiser.shape) * 0.999
    once = denoiser.decode(near)
    np.testing.assert_array_equal(denoiser.decode(denoiser.encode(once)), once)
    torch.testing.assert_close(denoiser.as_saved(near), denoiser.encode(once))
    jobs = once.numpy().reshape(len(rows), -1)[:, 2:5]
    np.testing.assert_array_equal(jobs.argmax(1), rows[:, 2:5].argmax(1))


def test_rows_that_are_not_finite_are_refused():
    denoiser = denoiser_of(trained_parts())
    x_0 = torch.zeros(3, *denoiser.shape)
    x_0[1, 0] = torch.nan
    with pytest.raises(RuntimeError, match="1 of 3 rows are not finite"):
        denoiser.decode(x_0)


def test_images_and_another_width_are_refused(tmp_path):
    save_parts(trained_parts(), tmp_path)
    with pytest.raises(ValueError, match=r"data must be data=table for the model of rows in .*"):
        check_checkpoint(tmp_path, None, 8, 1)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 3}))
    with pytest.raises(ValueError, match=r"in_channels of .* must be 6, as of encoding/, got 3"):
        check_checkpoint(tmp_path, None, 1, 1)
