"""Which cells a command line and a sweep file give, and what they are called."""

import pytest

from golf.errors import UserError
from golf.launcher.grid import LONGEST, Axis, Plan, expand, run_label, slug, sweep_label


def plan(**fields: object) -> Plan:
    return Plan(**({"purpose": None, "control": None, "seeds": (), "rows": {}} | fields))  # type: ignore[arg-type]


def axis(text: str) -> Axis:
    """`model=a,b` -> the axis with model=a and model=b."""
    key, values = text.split("=", 1)
    return Axis(key.lstrip("+~"), tuple(f"{key}={value}" for value in values.split(",")))


def cells(plan: Plan, *arguments: str) -> list[str]:
    return [" ".join(cell) for cell in expand(plan, [axis(argument) for argument in arguments])]


def test_every_row_has_its_first_seed_before_any_has_its_second() -> None:
    rows = {"a": ["quant=int6"], "b": ["quant=int8", "model.dim=64"]}
    assert cells(plan(rows=rows, seeds=(1, 2)), "+sweep=x") == [
        "quant=int6 label=a seed=1 +sweep=x",
        "quant=int8 model.dim=64 label=b seed=1 +sweep=x",
        "quant=int6 label=a seed=2 +sweep=x",
        "quant=int8 model.dim=64 label=b seed=2 +sweep=x",
    ]


def test_a_grid_is_a_product_and_names_what_it_sweeps() -> None:
    got = cells(plan(), "seed=1,2", "model=baseline,swiglu", "model.dim=64,96", "track=tiny")
    assert len(got) == 8 and got[0] == "label='baseline-model.dim_64' seed=1 model=baseline model.dim=64 track=tiny"
    assert [line.split()[1] for line in got] == ["seed=1"] * 4 + ["seed=2"] * 4
    assert len({line.split()[0] for line in got}) == 4, "seeds share the label of their row"


def test_seeds_alone_leave_the_label_to_the_run() -> None:
    assert cells(plan(), "seed=1,2") == ["seed=1", "seed=2"]
    assert cells(plan(), "label=mine", "seed=1,2") == ["label=mine seed=1", "label=mine seed=2"]
    assert cells(plan(), "label=mine", "quant=int6,int8")[1] == "label=mine-int8 quant=int8"


def test_the_command_line_wins_over_rows_and_registered_seeds() -> None:
    rows = {"a": ["quant=int6", "model.dim=64"], "b": ["quant=int8", "model.dim=96"]}
    got = cells(plan(rows=rows, seeds=(1, 2)), "model.dim=32", "seed=7")
    assert got == ["quant=int6 label=a seed=7 model.dim=32", "quant=int8 label=b seed=7 model.dim=32"]


def test_rows_times_a_grid() -> None:
    got = cells(plan(rows={"a": ["quant=int6"]}, seeds=(1,)), "model.dim=32,64")
    assert [line.split()[1] for line in got] == ["label='a-model.dim_32'", "label='a-model.dim_64'"]


def test_labels_never_merge_rows() -> None:
    got = cells(plan(), "data.path=/a/b,/a_b")
    assert len({line.split()[0] for line in got}) == 2
    long = cells(plan(), f"data.path={'x' * 200},{'x' * 201}")
    labels = {line.split()[0].removeprefix("label=").strip("'") for line in long}
    assert len(labels) == 2 and max(map(len, labels)) <= LONGEST


@pytest.mark.parametrize(
    "override, text",
    {
        "model=swiglu": "swiglu",
        "model/mlp=relu2": "model_mlp_relu2",
        "+model.dim=64": "model.dim_64",
        "average=null": "average_null",
        "compute.compile=true": "compute.compile_true",
        "optimizer.roles.matrix=adamw": "optimizer.roles.matrix_adamw",
        "data.path=/a b/c": "data.path_a_b_c",
        "a.b=[1,2]": "a.b_1+2",
    }.items(),
)
def test_overrides_as_names(override: str, text: str) -> None:
    assert slug(override) == text


def test_a_sweeps_folder_is_named_after_what_is_run_and_nothing_else() -> None:
    quiet = [axis(text) for text in ("+sweep=x", "seed=1,2", "outputs=/o", "log=none", "launch.slots=2", "rerun=true")]
    assert sweep_label("x", quiet) == "x" and sweep_label(None, quiet) == "grid"
    assert sweep_label("x", [*quiet, axis("track=tiny")]) == "x-tiny"
    assert sweep_label(None, [axis("model=a,b"), axis("model.dim=64")]) == "grid-a+b-model.dim_64"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"control": "c", "rows": {"a": ["x=1"]}}, "hydra.sweeper.control=c: not a row; use one of a"),
        ({"seeds": (1, 1)}, "hydra.sweeper.seeds="),
        ({"seeds": (1.5,)}, "hydra.sweeper.seeds="),
        ({"seeds": (True,)}, "hydra.sweeper.seeds="),
        ({"rows": {"a/b": []}}, "hydra.sweeper.rows.a/b: names a folder"),
        ({"rows": {"a": ["seed=3"]}}, "hydra.sweeper.rows.a: seed=3 is the sweep's to set"),
        ({"rows": {"a": ["x=1", "label=b"]}}, "hydra.sweeper.rows.a: label=b is the sweep's to set"),
    ],
)
def test_wrong_sweep_files_are_named(fields: dict, message: str) -> None:
    with pytest.raises(UserError) as wrong:
        plan(**fields)
    assert str(wrong.value).startswith(message)


def test_names_that_mean_more_to_hydra_are_quoted() -> None:
    rows = {name: ["x=1"] for name in ("1e5", "null", "a.b", "plain")}
    labels = [line.split()[1] for line in cells(plan(rows=rows))]
    assert labels == ["label='1e5'", "label='null'", "label='a.b'", "label=plain"]
    assert cells(plan(), "label='my__run_'") == ["label=my__run_"], "a name that was given stays as it is"


def test_different_keys_never_share_a_folder() -> None:
    one, two = (f"optimizer.groups.{group}.lr=0.1,0.2" for group in ("matrices", "embeddings"))
    assert sweep_label(None, [axis(one)]) != sweep_label(None, [axis(two)])


def test_a_lone_run_is_called_after_what_its_command_line_changes() -> None:
    line = [
        "batch.sequence_length=16",
        "track=tiny",
        "model.dim=64",
        "qat=null",
        "+model.layers='3'",
        "seed=5",
        "log=none",
    ]
    name = "base-model.dim_64-model.layers_3-qat_null-batch.sequence_length_16-tiny"
    assert run_label("base", line) == run_label("base", line[::-1]) == name
    assert run_label("base", ["data.path=/a/b.txt", "outputs=/x", "launch.nproc=2", "data_dir=/y"]) == "base"
    long = [f"model.dim={'9' * 90}{digit}" for digit in (1, 2)]
    names = {run_label("base", [override]) for override in long}
    assert len(names) == 2 and all(len(name) == LONGEST for name in names)
