"""Words of the command line: what Hydra would take silently is refused, and what it cannot read is given in quotes."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from golf import audit, quantize, report, submit, train
from golf.arguments import Parser, key_values, one_of
from golf.command_line import check_arguments, quoted, search_paths
from golf.compose import compose, composer_of
from golf.errors import UserError
from golf.launcher.grid import Plan, expand
from golf.launcher.grid import quoted as as_name
from golf.suggestions import did_you_mean, nearest_key
from hydra_plugins.golf_sweeper import _axis
from tests.helpers.tiers import slow

REFUSED = {
    "an option that is a key": (["--seed", "3"], "--seed: is no option; keys are written without dashes, seed=3"),
    "with its value": (["--model.dim=64"], "is no option; keys are written without dashes, model.dim=64"),
    "an option misspelt": (["--multrun"], "--multrun: is no option; did you mean --multirun?"),
    "an option without its value": (["--cfg"], "argument --cfg/-c: expected one argument"),
    "another root": (["--config-name", "x"], "--config-name=x: golf composes conf/config.yaml"),
    "another path": (["--config-path", "x"], "--config-path=x: golf reads conf/; --config-dir FOLDER adds"),
    "no folder": (["--config-dir", "/absent/x"], "--config-dir=/absent/x: is no folder"),
    "a run's place": (["hydra.run.dir=x"], "hydra.run.dir=x: golf does not read it; outputs=FOLDER"),
    "a sweep's place": (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: golf does not read it; outputs=FOLDER"),
    "variables": (["+hydra.job.env_set.A=1"], "+hydra.job.env_set.A=1: golf does not read it; set the variable before"),
    "a launcher's setting": (["hydra.launcher.n_jobs=2"], "golf does not read it; launch.KEY=VALUE"),
    "a callback": (["+hydra.callbacks.x._target_=os.abort"], "golf does not read it; leave it out"),
    "a logger": (["hydra/job_logging=colorlog"], "hydra/job_logging=colorlog: golf does not read it"),
    "a bracket": (["label=a(b"], """type 'label="a(b"'"""),
    "a blank for a list": (["x=[a,"], "x=[a,: cannot be read as a list, such as 'x=[a,b]'"),
    "half a word": (["data.path=a", "b"], "b: is no key=value; add the value, or where it belongs to the word before"),
    "a key of other letters": (["mödel=3"], "mödel=3: 'mödel' is no key"),
    "no key": (["=3"], "=3: names no key; write KEY=3"),
    "nothing": ([""], ": is no key=value"),
    "two lines": (["data.path=a\n(b"], "'data.path=a\\n(b': its value holds control characters"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_one_line_with_the_fix(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_arguments(words)
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_sweeps_settings_are_no_lone_runs() -> None:
    line = ["track=tiny", "hydra.sweeper.seeds=[1,2]"]
    with pytest.raises(UserError, match=r"hydra\.sweeper\.seeds=\[1,2\]: is of a sweep; add -m, or a sweep file"):
        train.run_of_line(check_arguments(line))


def test_what_golf_reads_passes_as_it_stands() -> None:
    words = ["hydra.mode=MULTIRUN", "hydra.sweeper.seeds=[1,2]", "+sweep=smoke", "~optimizer.roles.scalar", "a/b@c.d=e"]
    assert check_arguments(["-m", *words]).overrides == words
    assert check_arguments(["--cfg", "job", *words]).options == ["--cfg", "job"]


@pytest.mark.parametrize(
    "value", ["a#b", "a(b", "a&b", "{x", "x}y", "a=b", "a;b", "größe", "a'b", 'a"b', "a\\'(", "a!", "?*^"]
)
def test_the_form_to_type_gives_the_value_letter_for_letter(value: str) -> None:  # fmt: skip
    """What the message says, through a shell, is the text that was meant."""
    try:
        (word,) = check_arguments([f"data.path={value}"]).overrides
    except UserError as error:
        (word,) = shlex.split(str(error).split("type ")[1])
    assert OverridesParser.create().parse_override(word).value() == value


@pytest.mark.parametrize("examples", [50, slow(2000)])
def test_any_text_can_be_given_in_quotes(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    def same(value: str) -> None:
        (word,) = shlex.split(shlex.quote(quoted("data.path", value)))
        assert OverridesParser.create().parse_override(word).value() == value

    same()


ODD = [
    "a b",
    "a,b",
    "(x)",
    "1e3",
    "null",
    "'q'",
    'd"q',
    "a\\n",
    "größe",
    "a=b",
    "[y]",
    "#z",
    "a&b;c",
    "$HOME",
    "x\\",
    " a ",
]


@pytest.mark.parametrize("value", [*ODD[:4], *map(slow, ODD[4:])])
def test_a_command_pasted_into_a_shell_composes_the_same_run(value: str) -> None:
    """As it was typed, and as the cell of a sweep keeps it."""
    typed = ["data=text", quoted("data.path", value)]
    run = compose(check_arguments(shlex.split(shlex.join(typed))).overrides)
    assert run.data.path == value  # type: ignore[attr-defined]
    swept = OverridesParser.create().parse_override(f"{typed[1]},other")
    cell = expand(Plan(None, None, (), {}), [_axis(swept)])[0]
    again = compose(["data=text", *shlex.split(shlex.join(cell))])
    assert replace(again, label=run.label) == run


def test_a_folder_of_own_yamls_is_composed_with_and_kept(tmp_path: Path) -> None:
    """--config-dir becomes a word like any other, so that it is in command.txt and in the cells of a sweep."""
    (tmp_path / "my conf" / "schedule").mkdir(parents=True)
    (tmp_path / "my conf" / "schedule" / "mine.yaml").write_text("_target_: golf.schedules.Constant\nvalue: 1.0\n")
    line = check_arguments(["--config-dir", str(tmp_path / "my conf"), "track=tiny", "schedule=mine"])
    assert not line.options and search_paths(line.overrides) == (f"file://{tmp_path / 'my conf'}",)
    pasted = shlex.split(shlex.join(line.overrides))
    assert compose(pasted).schedule == compose(["track=tiny", "schedule=constant"]).schedule
    (tmp_path / "my conf" / "schedule" / "constant.yaml").write_text("")
    with pytest.raises(UserError, match=r"schedule/constant\.yaml: conf/ has a file of this name"):
        composer_of([*line.overrides, f"hydra.searchpath=['{tmp_path / 'my conf'}']"][-1:])


@pytest.mark.parametrize("hydra", ["run: {dir: x}", "job: {env_set: {A: b}}", "job: {chdir: true}", "output_subdir: x"])
def test_a_file_that_sets_what_is_not_read_is_refused(hydra: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\nhydra: {{mode: MULTIRUN, {hydra}}}\n")
    line = check_arguments(["--config-dir", str(tmp_path), "+sweep=mine", "track=tiny"])
    with pytest.raises(
        UserError, match=r"hydra\.(run\.dir|job\.\w+|output_subdir)=.*: golf does not read it; .*conf/ sets it"
    ):
        compose(line.overrides)


@pytest.mark.parametrize("group", ["qat", "codec", "late", "experiment", "curriculum", "model/output"])
def test_null_is_no_option_of_a_group(group: str) -> None:
    base = ["track=tiny", "experiment=pr401_late_qat"] if group == "qat" else ["track=tiny"]
    assert compose([*base, f"{group}=null"]) == compose([*base, f"{group}=[]"])
    assert compose([*base, "qat=null"]).qat is None


@pytest.mark.parametrize("name", ["on", "off", "yes", "null", "true", "1e3", "0x10", "007", "1_0", "nan", "Inf", "a-b"])
def test_a_name_is_a_text_to_hydra(name: str) -> None:
    assert OverridesParser.create().parse_override(f"label={as_name(name)}").value() == name


def test_words_near_to_others() -> None:
    assert did_you_mean("int6_gqtq", ["int6", "int6_gptq", "int8"]) == "did you mean int6_gptq? "
    assert did_you_mean("zzz", ["int6"]) == ""
    keys = {"model": {"dim": 1, "mlp": {"dim": 2}}, "seed": 1}
    assert [nearest_key(key, keys) for key in ("model.dimm", "modle.dim", "dim", "sed", "zzz.q")] == [
        "model.dim", "model.dim", "model.dim", "seed", None,
    ]  # fmt: skip


@pytest.mark.parametrize("door", [audit, submit, quantize, report])
def test_every_door_tells_golfs_version(door: ModuleType, capsys: pytest.CaptureFixture) -> None:
    try:
        assert door.main(["--version"]) == 0
    except SystemExit as end:  # argparse's way
        assert end.code == 0
    assert capsys.readouterr().out.startswith("golf ")


def test_other_doors_name_the_word_that_is_near(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=r"rn=x: takes run, row, each as key=value; did you mean run\?"):
        key_values(["rn=x"], ["run", "row"])
    with pytest.raises(UserError, match=r"track=recrod: record or non_record; did you mean record\?"):
        one_of("track", "recrod", ("record", "non_record"))
    parser = Parser(prog="golf/report.py")
    parser.add_argument("--control")
    with pytest.raises(UserError, match=r"--contol x; did you mean --control\? golf/report.py --help"):
        parser.parse_args(["--contol", "x"])
    (tmp_path / "smoke").mkdir()
    doors = {
        "did you mean smoke?": lambda: report.main([str(tmp_path / "smoek")]),
        "did you mean quant?": lambda: quantize.main(["run=x", "quan=int6"]),
        "--seed: is no option": lambda: quantize.main(["run=x", "--seed", "3"]),
    }
    for message, door in doors.items():
        assert door() == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
