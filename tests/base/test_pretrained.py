"""Paths, configs and weight files of other people's models, by names and JSON alone."""

import json
import shutil

import pytest

from sidepipe.base.pretrained import (
    fetching,
    fingerprint,
    folder_or_hub_id,
    network_folder,
    parts_of,
    read_object,
    unet_files,
    weight_files,
)

# paths


def test_a_folder_is_local_and_an_unknown_owner_is_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "faces").mkdir(parents=True)
    assert str(folder_or_hub_id("dpm.path", "checkpoints/faces")) == "checkpoints/faces"
    assert folder_or_hub_id("dpm.path", "google/ddpm-cifar10-32") == "google/ddpm-cifar10-32"
    assert folder_or_hub_id("dpm.path", "hf://google/ddpm-cat-256") == "google/ddpm-cat-256"


@pytest.mark.parametrize("path", ["checkpoints/face", "checkpoints/mine", "checkpoints/a/b"])
def test_a_misspelled_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "faces").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"^dpm.path names {path}, which is not a folder"):
        folder_or_hub_id("dpm.path", path)


def test_the_closest_folder_and_the_spelling_for_the_hub_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "faces").mkdir(parents=True)
    hint = "did you mean checkpoints/faces.; write hf://checkpoints/face for the hub"
    with pytest.raises(FileNotFoundError, match=hint):
        folder_or_hub_id("dpm.path", "checkpoints/face")
    with pytest.raises(FileNotFoundError, match=r"did you mean /.*/faces\?$"):
        folder_or_hub_id("dpm.path", str(tmp_path / "checkpoints" / "facez"))


@pytest.mark.parametrize("path", ["mine", "./mine", "../mine", "/no/such", "~/no-such", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        folder_or_hub_id("dpm.path", path)


@pytest.mark.parametrize("path", ["outputs/dpm", "outputs", "./outputs/dpm", "outputs/dpm/key"])
def test_outputs_before_a_run_are_not_looked_up_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder; remedy: run make demo, or name"):
        folder_or_hub_id("dpm.path", path)


@pytest.mark.parametrize("error", [OSError, ValueError, ConnectionError])
def test_a_failed_download_is_one_line_with_the_name(error):
    message = "got a/b, which is no folder and cannot be fetched"
    with pytest.raises(FileNotFoundError, match=message) as e, fetching("dpm.path", "a/b"):
        raise error("first\nsecond")
    assert "\n" not in str(e.value)


def test_a_file_is_not_a_folder_and_the_hub_takes_owner_and_name(tmp_path):
    for name, remedy in (("config.json", "name its folder"), ("a.safetensors", "save_pretrained")):
        (tmp_path / name).write_text("")
        with pytest.raises(FileNotFoundError, match=f"which is a file.*; remedy: .*{remedy}"):
            folder_or_hub_id("dpm.path", str(tmp_path / name))
    with pytest.raises(ValueError, match=r"dpm.path must be hf://owner/name, got 'hf://mine'"):
        folder_or_hub_id("dpm.path", "hf://mine")


# configs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a JSON object, got 'an empty file'; copy it again"),
        (b"<!DOCTYPE html><html>", "got 'an HTML page'; download the file itself"),
        (b"\xef\xbb\xbf{}", "got 'a byte-order mark'; save it as UTF-8 without one"),
        ('{"a": 1}'.encode("utf-16"), "got 'a byte-order mark'"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "got 'a pointer of Git LFS'; run git lfs",
        ),
        (b"[]", r"must be a JSON object, got \[\]"),
        (b"null", "must be a JSON object, got None"),
        (b"{'a': 1}", "cannot be read: Expecting property name"),
        (b'{"a": "\xff"}', "cannot be read: 'utf-8' codec"),
    ],
)
def test_junk_in_a_config_is_one_line_with_the_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_object(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_parts_without_a_class_are_left_out():
    index = {"_class_name": "A", "a": ["x", "B"], "b": [None, None], "c": [], "d": None, "e": "x"}
    assert parts_of(index) == {"a": "B"}


# weight files


def made(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.bin"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.bin"], None, f"{STEM}.bin"),
        ([f"{STEM}.fp16.safetensors"], None, f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.non_ema.safetensors"], None, f"{STEM}.non_ema.safetensors"),
        (["ema_model.safetensors"], None, "ema_model.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.non_ema.bin"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.non_ema.bin"], "non_ema", f"{STEM}.non_ema.bin"),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "fp16", f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.safetensors", "ema_model.bin"], "default", f"{STEM}.safetensors"),
        ([f"{STEM}.safetensors", "ema_model.bin"], "ema", "ema_model.bin"),
        (
            ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"],
            None,
            "model.safetensors",
        ),
    ],
)
def test_the_only_variant_is_taken_and_another_one_by_its_name(tmp_path, names, variant, expected):
    folder = made(tmp_path / "unet", *names)
    assert [p.name for p in weight_files(folder, variant)] == [expected]


@pytest.mark.parametrize(
    "names",
    [
        [f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"],
        [f"{STEM}.safetensors", "ema_model.safetensors"],
    ],
)
def test_weights_of_several_kinds_have_to_be_chosen(tmp_path, names):
    with pytest.raises(ValueError, match=r"of one variant, .*; set dpm.variant="):
        weight_files(made(tmp_path / "unet", *names))


def test_a_variant_that_is_not_there_is_refused_or_replaced(tmp_path):
    folder = made(tmp_path / "unet", "model.safetensors")
    with pytest.raises(ValueError, match=r"dpm.variant must be one of \['default'\].* got 'fp16'"):
        weight_files(folder, "fp16")
    assert weight_files(folder, "fp16", required=False) == [folder / "model.safetensors"]


def test_without_weights_the_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="unet has no weights"):
        weight_files(made(tmp_path / "unet", "config.json"))
    adapter = made(tmp_path / "text_encoder", "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights of its own, but a LoRA .*fuse_lora"):
        weight_files(adapter)


@pytest.mark.parametrize(
    "index", [f"{STEM}.safetensors.index.json", f"{STEM}.safetensors.index.fp16.json"]
)
def test_shards_are_those_of_the_index_and_all_there(tmp_path, index):
    shards = [f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors"]
    folder = made(tmp_path / "unet", *shards)
    weights = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    (folder / index).write_text(json.dumps(weights))
    assert [p.name for p in weight_files(folder)] == shards
    (folder / shards[1]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lists .*00002-of-00002.safetensors, which is missing"
    ):
        weight_files(folder)
    (folder / index).write_text("{}")
    with pytest.raises(ValueError, match=r"weight_map of .* must be a mapping, got None"):
        weight_files(folder)


def test_a_shard_outside_the_folder_is_not_read(tmp_path):
    made(tmp_path, "model.safetensors")
    folder = made(tmp_path / "unet")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../model.safetensors"}}'
    )
    with pytest.raises(FileNotFoundError, match="which is missing"):
        weight_files(folder)


def test_averaged_weights_in_a_folder_of_their_own_have_to_be_chosen(tmp_path):
    (tmp_path / "unet_ema").mkdir()
    assert network_folder(tmp_path, None) == tmp_path / "unet_ema"
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match=r"dpm.variant must be one of .*; set dpm.variant=default"):
        network_folder(tmp_path, None)
    assert network_folder(tmp_path, "ema") == tmp_path / "unet_ema"
    assert network_folder(tmp_path, "default") == tmp_path / "unet"


def test_a_folder_of_averaged_weights_needs_no_variant_of_its_files(tmp_path):
    for name in ("unet", "unet_ema"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diffusion_pytorch_model.bin").touch()
    inside = tmp_path / "unet_ema"
    files = unet_files(inside, "ema")
    assert files == [inside / "diffusion_pytorch_model.bin"]
    with pytest.raises(ValueError, match=r"dpm.variant must be one of \['default'\]"):
        unet_files(tmp_path / "unet", "ema")


@pytest.mark.parametrize(
    "hashed",
    [
        ["scheduler/a.json", "unet/b.json", "unet/c.bin"],
        ["scheduler/a.json", "text_encoder/d.bin", "tokenizer/e.txt", "unet/b.json", "vae/c.bin"],
        ["scheduler/a.json", "unet/b.json", "unet_ema/b.json"],
        ["config.json", "scheduler_config.json"],
        ["config.json", "scheduler/a.json"],
        ["scheduler_config.json", "unet_ema/b.json"],
    ],
    ids=" ".join,
)
def test_a_fingerprint_is_of_the_parts_files_wherever_they_are(tmp_path, hashed):
    for name in [*hashed, "samples/1.png", "unet/more/2.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if not any(name.startswith("unet/") for name in hashed):
        shutil.rmtree(tmp_path / "unet")
    before = fingerprint(tmp_path)
    assert sorted(before) == hashed
    for name in hashed:
        (tmp_path / name).write_text("changed")
        after = fingerprint(tmp_path)
        assert {path for path in hashed if after[path] != before[path]} == {name}
        before = after
