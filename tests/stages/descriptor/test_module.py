import numpy as np
import pytest
import torch

from sidepipe.engine.training import step_generator
from sidepipe.features.copydet import CopyNet
from sidepipe.stages.descriptor.losses import koleo, matches, nt_xent
from sidepipe.stages.descriptor.module import DescriptorModule

CPU = torch.device("cpu")


def module(**changes):
    torch.manual_seed(0)
    settings = {
        "temperature": 0.1, "entropy_weight": 0.5, "lr": 0.003, "weight_decay": 0.0,
        "lr_warmup_steps": 1, "seed": 0,
    }  # fmt: skip
    return DescriptorModule(CopyNet(8, [8, 16], 8), **{**settings, **changes})


def images(n=12, channels=1):
    shape = (n, 8, 8, channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_has_two_different_views_that_match(channels):
    views, ids = module().views(images(channels=channels), step_generator(0, 0, CPU))
    assert views.shape == (24, 3, 8, 8)
    assert views.abs().max() <= 1
    assert ids[:, 0].tolist() == [*range(12), *range(12)]
    assert matches(ids)[range(12), range(12, 24)].all()
    assert ((views[:12] - views[12:]).abs().amax((1, 2, 3)) > 0.05).all()
    assert (views[:, :1] == views).all().item() == (channels == 1)


def test_mixed_precision_does_not_reach_the_views():
    whole, _ = module().views(images(), step_generator(0, 0, CPU))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = module().views(images(), step_generator(0, 0, CPU))
    assert half.dtype == torch.float32
    assert half.equal(whole)


def test_ranks_together_have_the_views_of_one_process():
    x = images()
    whole, ids = module().views(x, step_generator(0, 5, CPU))
    parts = [
        module().views(x[4 * r : 4 * r + 4], step_generator(0, 5, CPU), (r, 3)) for r in range(3)
    ]
    # Views come as all first copies, then all second ones.
    together = [
        torch.cat([p[i].unflatten(0, (2, 4)) for p in parts], 1).flatten(0, 1) for i in (0, 1)
    ]
    torch.testing.assert_close(together[0], whole, rtol=0, atol=1e-6)
    assert together[1].equal(ids)


def test_the_loss_of_a_step_is_that_of_its_views(monkeypatch):
    stage = module()
    logged = {}
    monkeypatch.setattr(stage, "log_dict", lambda values, **options: logged.update(values))
    monkeypatch.setattr(stage, "_trainer", type("T", (), {"world_size": 1, "global_rank": 0,
                                                          "global_step": 4}))  # fmt: skip
    loss = stage.training_step([images()], 0)
    views, ids = stage.views(images(), step_generator(0, 4, CPU))
    z = stage.network(views)
    contrast, entropy = (
        nt_xent(z @ z.T, matches(ids), 0.1),
        koleo(z @ z.T, matches(ids)),
    )
    torch.testing.assert_close(loss, contrast + 0.5 * entropy)
    torch.testing.assert_close(logged["contrast"], contrast)
    torch.testing.assert_close(logged["entropy"], entropy)


def test_validation_shows_the_same_views_every_time(monkeypatch):
    stage, logged = module(), []
    monkeypatch.setattr(stage, "log_dict", lambda values, **options: logged.append(values))
    for _ in range(2):
        stage.validation_step([images()], 0)
    assert logged[0] == logged[1]
    assert set(logged[0]) == {"val/contrast", "val/entropy"}
