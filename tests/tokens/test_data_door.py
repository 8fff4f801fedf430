import dataclasses
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from golf import data
from golf.tokens.corpora import SotuConfig
from golf.tokens.hub import FinewebConfig
from tests.helpers.tiers import slow
from tests.tokens.helpers import toy_data

ROOT = Path(data.__file__).resolve().parent.parent
YAMLS = sorted([*(ROOT / "conf/data").glob("*.yaml"), *(ROOT / "conf/loader").glob("*.yaml")])


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_yaml_lists_the_fields_of_its_dataclass_and_types(path):
    assert path.read_text().startswith("# ")
    node = OmegaConf.to_container(OmegaConf.load(path))
    cls = get_class(node.pop("_target_"))
    assert sorted(node) == sorted(field.name for field in dataclasses.fields(cls))
    OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), node))


def test_overrides_reach_the_config():
    config = data.data_of(["data=sotu", "data.vocab_size=1536"])
    assert config == SotuConfig(vocab_size=1536, val_one_in=32, tune_one_in=32)
    fineweb = data.data_of(["data=fineweb_sp8192", "data.train_shards=3"])
    assert isinstance(fineweb, FinewebConfig)
    assert (fineweb.vocab_size, fineweb.train_shards, fineweb.repo_id) == (8192, 3, "kevclark/parameter-golf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["prepare", "data=nothing"],
            "golf: In 'config': Could not find 'data/nothing' Available options in 'data': enmix fineweb_sp1024",
        ),
        (["prepare", "data.vocab_size=3"], "golf: data=(none): name one of"),
        (["prepare", "data=sotu", "vocab_size=3"], "golf: vocab_size=3: there is no key vocab_size"),
        (["prepare", "data=sotu", "data.vocabsize=3"], "golf: data.vocabsize=3: there is no key data.vocabsize"),
        (["prepare", "data=sotu", "data.vocab_size=abc"], "golf: data.vocab_size='abc': "),
        (["prepare", "data=sotu", "data.vocab_size=70000"], "golf: data.vocab_size=70000 must lie in"),
        (
            ["prepare", "data=sotu", "--train-shards", "3"],
            "golf: data.train_shards=3: there is no key data.train_shards",
        ),
        (["prepare", "data=text", "data.path=missing/*.txt"], "golf: data.path=missing/*.txt: no .txt or"),
        (["check", "data=sotu"], "golf: data=sotu: not prepared"),
        (["check", "missing"], "golf: missing: has no manifest.json"),
        (["list"], "nothing is prepared"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert data.main([*arguments, "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def in_a_process(command, folder, monkeypatch, capsys):
    made = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": ""}
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def in_this_process(command, folder, monkeypatch, capsys):
    """As a script, but for the seconds that a process takes to import torch."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "path", [str(Path(command[0]).parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(command[0], run_name="__main__")
    assert end.value.code == 0 and sys.path[0] == str(ROOT)
    return capsys.readouterr().out


@pytest.mark.parametrize("run", [in_this_process, slow(in_a_process)])
def test_prepare_as_a_script_then_list_and_check(run, tmp_path, monkeypatch, capsys):
    """Prepared as people do it: from any folder, with golf/ at the head of sys.path, into a pipe."""
    config, place = toy_data(tmp_path), ["--data-dir", str(tmp_path / "d")]
    settings = {"path": config.path, "vocab_size": 512, "val_one_in": 8, "tune_one_in": 8}
    overrides = ["data=text", *(f"data.{key}={value}" for key, value in settings.items())]
    told = run([str(ROOT / "golf/data.py"), "prepare", *overrides, *place], tmp_path, monkeypatch, capsys)
    folder, digest = str(config.folder(tmp_path / "d")), config.find(tmp_path / "d").digest
    assert folder in told and digest in told

    assert data.main(["list", *place]) == 0
    listed = capsys.readouterr().out
    assert folder in listed and digest in listed
    assert data.main(["check", *overrides, *place]) == 0
    assert f"{folder}: sound" in capsys.readouterr().out
    Path(folder, "tune_000000.bin").unlink()
    assert data.main(["check", folder]) == 2
    assert f"delete the folder {folder}" in capsys.readouterr().err
