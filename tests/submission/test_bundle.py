"""The script of a run does what golf does, bit for bit, and holds nothing that the run does not use."""

import ast
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from golf.conf_files import CONF
from golf.nodes import configs
from golf.submission.bundle import bundle, recipe_of
from golf.submission.pack import pack
from tests.helpers.runs import composed
from tests.helpers.tiers import slow, wide
from tests.submission.conftest import Trained

QUANTISERS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
# Every quantiser once, each with another of these.
EXPERIMENTS = {
    "baseline_naive": "experiment=baseline_naive",
    "pr401": "experiment=pr401",
    "pr584_baseline": "experiment=pr584_baseline",
    "mla_128": "model=mla_128",
    "surge": "experiment=pr1589_surge_v1",
    "pr401_distill": "experiment=pr401_distill",
}
EVALS = ("plain", "ttt_sgd", "sliding", "ngram", "ttt_lora")
CASES = list(zip(QUANTISERS, cycle(EXPERIMENTS), cycle(EVALS), strict=False))
HERE = ("int5_mlp_int6", "pr401", "ngram")  # many parts, in little time; without a process of its own
KEPT = [HERE, *(slow(*case) for case in CASES)]


@pytest.mark.parametrize(("quant", "experiment", "evaluator"), KEPT, ids=lambda value: value)
def test_the_script_gives_golfs_own_artifact_and_scores(
    trained: Callable[..., Trained], tmp_path: Path, quant: str, experiment: str, evaluator: str
) -> None:
    one = trained(EXPERIMENTS[experiment], f"quant={quant}", f"eval={evaluator}", "budget.max_steps=4")
    bare = (quant, experiment, evaluator) != HERE
    artifact, said = one.script(bundle(one.run, "a test"), tmp_path / "run", bare=bare)
    assert artifact == one.folder.artifact.read_bytes()
    assert said["val_bpb"] == {name: entry["val_bpb"] for name, entry in one.result["evals"].items()}
    assert said["artifact_bytes"] == len(artifact) and said["steps"] == 4


def names_in(text: str) -> set[str]:
    tree = ast.parse(text)
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}


@pytest.fixture(scope="module")
def plain_text() -> str:
    return bundle(composed("track=laptop", "experiment=baseline_naive"), "a test")


def test_a_script_imports_packages_and_nothing_of_golf(plain_text: str) -> None:
    tree = ast.parse(plain_text)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    packages = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert packages <= {"torch", "numpy", "sentencepiece", "zstandard", "brotli"} and "torch" in packages


@pytest.mark.parametrize(
    ("override", "unused"),
    [
        (
            "average=ema_swa model/output=[xsa] codec=entropy",
            {"EMAConfig", "SWAConfig", "XSAConfig", "EntropyConfig"},
        ),
        slow("average=ema_swa", {"EMAConfig", "SWAConfig"}),
        slow("model/output=[xsa]", {"XSAConfig"}),
        wide("quant=int6_gptq", {"GPTQConfig"}),
        wide("qat=late", {"QATConfig", "Switch"}),
        wide("model/features=[bigram]", {"BigramHashConfig"}),
        wide("eval=ttt_lora", {"LoRAScorerConfig", "DocumentsConfig"}),
        wide("late=distill", {"DistillConfig"}),
        slow("codec=entropy", {"EntropyConfig"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_that_is_off_leaves_no_name_and_no_bytes(plain_text: str, override: str, unused: set[str]) -> None:
    with_part = bundle(composed("track=laptop", "experiment=baseline_naive", *override.split()), "a test")
    assert unused <= names_in(with_part) and not unused & names_in(plain_text)
    assert len(with_part) > len(plain_text)


def test_no_part_is_there_that_the_recipe_does_not_name(plain_text: str) -> None:
    """Of all config classes of golf those that this run is made of, and the classes that they derive from."""
    run = composed("track=laptop", "experiment=baseline_naive")
    used = {base.__name__ for _, config in configs(recipe_of(run)) for base in type(config).__mro__}
    used |= {"FixedConfig", "ScorerConfig"}  # an evaluator without a scorer has the fixed one
    trees = [ast.parse(path.read_text()) for path in (CONF.parent / "golf").rglob("*.py")]
    every = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = {name for name in every if name.endswith("Config")}
    assert len(parts) > 60 and not (parts - used) & names_in(plain_text)


@pytest.mark.slow
def test_a_part_that_is_off_makes_the_packed_file_smaller(plain_text: str) -> None:
    with_part = bundle(composed("track=laptop", "experiment=baseline_naive", "model/output=[xsa]"), "a test")
    assert len(pack(plain_text).file) < len(pack(with_part).file)


def test_the_text_is_in_sections_that_end_with_what_runs(plain_text: str) -> None:
    sections = [line.split()[2].rstrip(":") for line in plain_text.splitlines() if line.startswith("# ------")]
    assert sections[-1] == "submission.script" and len(sections) == len(set(sections))
