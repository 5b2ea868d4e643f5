"""Weights go only into a network that they fit exactly."""

import logging

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tests.tiny import UNET

from sidepipe.base.settings import build
from sidepipe.base.weights import (
    common_prefix,
    load_exactly,
    network_names,
    read_network,
    read_tensors,
)

FILE = "diffusion_pytorch_model.safetensors"
# As its middle has attention, its names have a history.
WITH_ATTENTION = {**UNET, "add_attention": True, "attention_head_dim": 2}


def tensors(seed=0, **changes):
    torch.manual_seed(seed)
    return build({**WITH_ATTENTION, **changes}).state_dict()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    build(WITH_ATTENTION).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def loaded(folder, weights=None):
    if weights is not None:
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / FILE)
    return read_network(UNet2DModel, folder, [folder / FILE])


def assert_is(network, weights):
    found = network.state_dict()
    assert found.keys() == weights.keys()
    assert all(found[name].equal(value) for name, value in weights.items())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training


def test_weights_are_those_of_the_file_and_no_random_number_is_drawn(folder):
    before = torch.get_rng_state()
    assert_is(loaded(folder), tensors())
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "unet.", "model.", "module._orig_mod.", "model.unet.module."],
)
def test_known_prefixes_are_stripped_and_logged(folder, prefix, caplog):
    with caplog.at_level(logging.INFO):
        network = loaded(folder, {prefix + name: value for name, value in tensors().items()})
    assert_is(network, tensors())
    assert f"every name begins with {prefix}, which is removed" in caplog.text


def test_a_prefix_of_some_names_is_an_error(folder):
    weights = tensors()
    weights["module.conv_out.bias"] = weights.pop("conv_out.bias")
    message = r"got 1 missing \(conv_out.bias\), 1 unexpected \(module.conv_out.bias\)"
    with pytest.raises(ValueError, match=message):
        loaded(folder, weights)


def test_a_prefix_that_the_network_has_stays():
    names = {"unet.a": (1,), "unet.b": (1,)}
    assert network_names(names, names, "") == {"unet.a": "unet.a", "unet.b": "unet.b"}
    found = {f"module.{name}": shape for name, shape in names.items()}
    assert network_names(names, found, "") == {f"module.{name}": name for name in names}
    assert common_prefix([]) == ""


def test_names_of_old_attention_layers_are_known(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in tensors().items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        weights[name] = value
    assert sum("proj_attn" in name or "query" in name for name in weights) == 4
    assert_is(loaded(folder, weights), tensors())


@pytest.mark.parametrize("part", ["conv_out", "mid_block.attentions", "time_embedding"])
def test_a_missing_part_is_listed(folder, part):
    weights = {name: value for name, value in tensors().items() if not name.startswith(part)}
    count = len(tensors()) - len(weights)
    message = rf"{FILE} must fit the network .* got {count} missing \({part}.*\); remedy"
    with pytest.raises(ValueError, match=message):
        loaded(folder, weights)


def test_what_is_left_over_is_listed_with_the_count(folder):
    weights = tensors() | {f"extra.{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(ValueError, match=r"got 5 unexpected \(extra.0, extra.1, extra.2, ...\)"):
        loaded(folder, weights)


def test_a_wrong_shape_is_listed_with_both_shapes(folder):
    weights = tensors() | {"conv_in.weight": torch.zeros(4, 3, 3, 3)}
    message = r"1 of another shape \(conv_in.weight \[4, 3, 3, 3\], not \[4, 1, 3, 3\]\)"
    with pytest.raises(ValueError, match=message):
        loaded(folder, weights)


def test_the_weights_of_another_network_are_refused(folder):
    with pytest.raises(
        ValueError, match=r"must fit the network of its config.json, got .* another shape"
    ):
        loaded(folder, tensors(block_out_channels=[8, 8], layers_per_block=2))


def test_a_new_name_and_its_old_one_in_one_file_are_refused(folder):
    weights = tensors()
    name = next(name for name in weights if name.endswith("to_q.weight"))
    weights[name.replace("to_q", "query")] = weights[name].clone()
    with pytest.raises(ValueError, match="got two weights of one name"):
        loaded(folder, weights)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(folder, value, word, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    weights["conv_out.weight"] = weights["conv_out.weight"].clone()
    weights["conv_out.weight"][0, 1, 2, 0] = value
    message = rf"^conv_out.weight of .*{FILE} must be finite, got {word} \(1 of 36 values"
    with pytest.raises(ValueError, match=message):
        loaded(folder, weights)


def test_half_precision_is_converted_and_logged(folder, caplog):
    half = {name: value.half() for name, value in tensors().items()}
    with caplog.at_level(logging.INFO):
        network = loaded(folder, half)
    assert_is(network, {name: value.float() for name, value in half.items()})
    assert "converting weights of float16" in caplog.text


@pytest.mark.parametrize("size", [0, 4, 100, 2000])
def test_a_truncated_file_is_named(folder, size):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:size])
    with pytest.raises(ValueError, match=rf"{FILE} (cannot be read as weights|must hold weights)"):
        loaded(folder)


@pytest.mark.parametrize("name", [FILE, "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "got an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "got a pointer of Git LFS"),
        (b"", "got an empty file"),
        (b"junk" * 100, "cannot be read as weights"),
    ],
)
def test_junk_is_named_as_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_tensors([tmp_path / name])
    assert "\n" not in str(error.value)


class Payload:
    """Any object but a tensor: what a pickle could run."""


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path):
    path = tmp_path / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.zeros(1), "b": Payload()}, path)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_tensors([path])
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"nothing else, got \['state_dict', 'epoch'\]"):
        read_tensors([path])
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="must be tensors by name, got 'list'"):
        read_tensors([path])


def test_shards_are_read_together(folder):
    weights = list(load_file(folder / FILE).items())
    files = [folder / "one.safetensors", folder / "two.safetensors"]
    save_file(dict(weights[:10]), files[0])
    save_file(dict(weights[10:]), files[1])
    assert_is(read_network(UNet2DModel, folder, files), tensors())
    with pytest.raises(ValueError, match="missing"):
        read_network(UNet2DModel, folder, files[:1])


def test_a_part_of_a_network_fits_that_part_exactly(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    first = network[0].weight.detach().clone()
    path = tmp_path / "adapter.safetensors"
    save_file({"1.weight": torch.ones(2, 2)}, path)
    load_exactly(network, [path], only=["1.weight"])
    assert network[1].weight.equal(torch.ones(2, 2))
    assert network[0].weight.equal(first)
    with pytest.raises(ValueError, match=r"1 missing \(1.bias\)"):
        load_exactly(network, [path], only=["1.weight", "1.bias"])
