"""What Hydra and OmegaConf refuse comes as one line that names the setting and the remedy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.composing import planned

from sidepipe.cli.main import CONF, main, refuse_words
from sidepipe.engine.graph import stage_class
from sidepipe.engine.refusals import WEIGHTS
from sidepipe.engine.stage import Runtime
from sidepipe.stages import STAGES

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs `sidepipe <arguments>`, which must fail; returns its one line."""

    def run(*arguments: str) -> str:
        outputs = f"runtime.outputs={tmp_path}"
        monkeypatch.setattr(sys, "argv", ["sidepipe", "stage=status", outputs, *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code not in (0, None)
        code, logged = stopped.value.code, capsys.readouterr().err
        # Python prints a message that is the exit code, and exits with 1.
        lines = (code if isinstance(code, str) else logged).splitlines()
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ["dpm=pretrained"],
            "dpm.path is required by dpm=pretrained: a folder written by",
        ),
        (
            ["data=imagefolder"],
            "data.source.folder is required by data=imagefolder: .* for example",
        ),
        (["data=none"], "data.size is required by data=none: .* for example data.size=64"),
        (["evaluate=cosine"], "evaluate.features.path is required by evaluate=cosine: the file"),
        (["label.sede=5"], "label.sede is not a setting; did you mean 'seed'"),
        (["~label.sed"], "label.sed is not a setting; did you mean 'seed'"),
        (["dta=digits"], "dta is not a setting; did you mean 'data'"),
        (
            ["precision=32-true"],
            r"^precision is not a setting; did you mean dpm.precision, generate.precision, .*"
            r"extract.precision.*\?$",
        ),
        (["data=digit"], "data=digit is no choice; did you mean 'digits'"),
        (["experiment=dmeo"], "experiment=dmeo is no choice; did you mean 'demo'"),
        (["+label.seed=1"], "label.seed is set already; remedy: label.seed=... in place of"),
        (["label.seed.x=1"], "label.seed has no settings, so there is no label.seed.x"),
        (["attacks.x=5"], r"attacks.x is not a setting; .*\+attacks.x=\{...\} adds a row"),
        (
            ["extract.guidance.guidance_scale=1,2"],
            "guidance.guidance_scale has several values, 1,2; remedy: -m ",
        ),
        (
            ["extract.near_duplicates.threshold=1"],
            "extract.near_duplicates is that of near_duplicates; set near_duplicates.threshold ins",
        ),
        (
            ["extract.surrogate=posterior", "extract.surrogate.guide_through=x_t"],
            "guide_through is not a setting of extract.surrogate=posterior; known: name, neighbors",
        ),
        (["generate.seed=${nowhere}"], "generate.seed: Interpolation key 'nowhere' not found$"),
        (
            ["extract/refine=cyclic", "extract.refine.noise=2"],
            r"extract.refine.noise must be in \[0, 1\], got 2",
        ),
        (["audit.refine_t=50"], "^audit is off; add audit=returns$"),
        (["detect.foo=1"], "^detect is off; add detect=labels or detect=prompts or detect=stable"),
        (["mitigate.method=none"], "^mitigate is off; add mitigate=inference$"),
        (["mitigations.x.y=1"], "^mitigations is off; add mitigations=benchmark or mitigations="),
        (
            ["experiment=smoke", "dpm=pretrained", "dpm.path=/my/model"],
            r"experiment=smoke sets dpm.max_steps, .*, which dpm=pretrained does not have; remedy: "
            r"~dpm.max_steps ~dpm.ema_start_step ",
        ),
        (["+dpm.max_stps=9"], "dpm.max_stps is not a setting of dpm=tiny; did you mean 'max_steps"),
        (
            ["experiment=smoke", "+dpm.max_stps=9"],
            "dpm.max_stps is not a setting of dpm=tiny; did you mean 'max_steps",
        ),
        (["~dpm.max_steps"], "dpm.max_steps is required by dpm=tiny and is not set"),
        (["label"], "cannot read 'label'; write a setting as name=value"),
        (["dpm.train_partitions=train"], "dpm.train_partitions must be a list, as .a, b., got"),
        (["label=5"], "label must be one of kmeans.*, got 5; ~label to leave out"),
        (["evaluate.false_positive_rates=[x]"], "evaluate has a value of the wrong type: .*'str'"),
        (["evaluate.bands.high=[a,null]"], "evaluate has a value of the wrong type"),
        (["diffusion.num_train_timesteps=x"], "or a stage that it reads, has a value of the wrong"),
        (
            ["evaluate.features.path=x"],
            "evaluate.features.path is not a setting; there are no choices",
        ),
        (["+attacks.x=5"], r"attacks.x must be changes by stage, as \{extract: .* got 5"),
        (["+attacks.x=[1]"], r"attacks.x must be changes by stage, .* got \[1\]"),
        (["+attacks.x={extract: 5}"], "attacks.x.extract must be a mapping of its settings, got 5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_gets_one_line_with_the_setting_and_the_remedy(refused, command, says):
    assert re.search(says, refused(*command))


def test_what_a_message_proposes_to_delete_is_all_that_the_experiment_sets(refused, tmp_path):
    command = ["experiment=smoke", "dpm=pretrained", f"dpm.path={tmp_path / 'model'}"]
    remedy = refused(*command).partition("remedy: ")[2].split()
    assert refused(*command, *remedy).partition(";")[0].endswith("model, which is not a folder")


@pytest.mark.parametrize("name", ["a=b", "a(b)", "a#b", "a[b]", "it's", "ö", "~", "a b)"])
def test_a_path_that_hydra_cannot_read_is_quoted_in_the_message_and_works_so(refused, name):
    path = f"~/{name}" if name == "~" else f"/nowhere/{name}"
    said = refused("data=imagefolder", f"data.source.folder={path}")
    assert said.endswith(f"'data.source.folder=\"{path}\"'".replace("it's", "it'\"'\"'s"))
    quoted = f'data.source.folder="{path}"'
    plan = planned("data=imagefolder", quoted, "dpm=unet64", "dpm.train_partitions=[train]")
    data = next(node for node in plan.nodes.values() if node.stage.name == "data")
    assert data.settings["source"]["folder"] == path


def test_every_setting_without_a_default_has_a_meaning_and_an_example():
    for path in CONF.glob("*/*.yaml"):
        text = path.read_text()
        for name in re.findall(r"^\s*(\w+): \?\?\?", text, re.MULTILINE):
            of_encoder = any(f"encoders.{kind}" in text for kind in WEIGHTS)
            group = path.parent.name
            known = stage_class(group).required if group in STAGES else ()
            assert of_encoder or name in [key.rpartition(".")[2] for key in known], (path, name)


def test_a_full_standard_output_is_not_blamed_on_the_outputs_folder(tmp_path):
    command = [sys.executable, "-m", "sidepipe", "stage=status", f"runtime.outputs={tmp_path}"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    said = "standard output cannot be written: [Errno 28] No space left on device\n"
    assert done.stderr.endswith(said)  # after a line of Hydra
    assert "Traceback" not in done.stderr


def test_a_path_in_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Runtime(outputs="~/results").outputs_folder == tmp_path / "results"
    plan = planned('runtime.outputs="~/results"')
    node = plan.goals("report")[0]
    assert node.folder(plan.runtime).is_relative_to(tmp_path / "results")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused_and_named(accelerator, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    rule = f"one that torch finds on this machine, auto, cpu, got '{accelerator}'; .*=auto"
    with pytest.raises(ValueError, match=rule):
        Runtime(accelerator=accelerator).require_accelerator()
    for there in ("auto", "cpu"):
        Runtime(accelerator=there).require_accelerator()


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    Runtime(accelerator="gpu", devices=2).require_accelerator()
    with pytest.raises(ValueError, match=r"runtime.devices must be <= 2 GPUs, got 3"):
        Runtime(accelerator="gpu", devices=3).require_accelerator()


def test_each_table_of_a_multirun_is_headed_by_its_overrides(monkeypatch, tmp_path, capsys):
    arguments = ["-m", "stage=status", "label.num_clusters=20,30", f"runtime.outputs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["sidepipe", *arguments])
    main()
    said = capsys.readouterr().out
    assert re.findall(r"label.num_clusters=(\d+) .*:$", said, re.MULTILINE) == ["20", "30"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["comparee", "a", "b"], "comparee is neither .*; did you mean sidepipe compare. remedy"),
        (["Compare", "a"], "Compare is neither .*; did you mean sidepipe compare. remedy"),
        (
            ["generated"],
            "generated is neither a command .* remedy: sidepipe compare GENERATED train=",
        ),
        (
            ["a", "train=b"],
            "a is neither a command .* remedy: sidepipe compare GENERATED train=FOL",
        ),
        (["generated/", "train=b"], "generated/ is neither a command nor a setting"),
        (["status"], "did you mean sidepipe stage=status. remedy"),
        (["evalute"], "did you mean sidepipe stage=evaluate. remedy"),
        (["help"], "did you mean sidepipe --help. remedy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_is_no_command_is_refused_with_the_closest_one(monkeypatch, words, says):
    monkeypatch.setattr(sys, "argv", ["sidepipe", *words])
    with pytest.raises(SystemExit, match=says) as stopped:
        main()
    assert "\n" not in str(stopped.value.code)


@pytest.mark.parametrize("words", [[], ["-m"], ["~label"], ["+a=1"], ["stage=status"], ["a/b=c"]])
def test_settings_and_flags_are_no_words(words):
    refuse_words(words)


@pytest.mark.parametrize("words", [["--version"], ["compare", "--version"]])
def test_the_version_is_that_of_sidepipe(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["sidepipe", *words])
    main()
    (expected,) = re.findall(r'^version = "(.+)"', PROJECT.read_text(), re.MULTILINE)
    assert capsys.readouterr().out == f"sidepipe {expected}\n"
