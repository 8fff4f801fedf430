import copy
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from golf.errors import UserError
from golf.tokens.hub import FinewebConfig
from golf.tokens.shards import TokenStream, open_shard, write_shard, write_shards
from golf.tokens.tokenizer import encode_documents, train_tokenizer
from golf.tokens.verify import verify_prepared
from tests.tokens.helpers import toy_documents

SHARD = 6000


def quiet(message):
    pass


class FakeHub:
    """The published layout in a folder, and a stand-in for hf_hub_download that fills a cache as it does."""

    def __init__(self, root: Path) -> None:
        self.files = root
        self.asked: list[str] = []
        self.fail_on: str | None = None
        self.spoil: str | None = None
        self.publish()

    def publish(self) -> None:
        root = self.files
        tokenizers, data = root / "datasets/tokenizers", root / "datasets/datasets/fineweb10B_sp512"
        tokenizers.mkdir(parents=True)
        data.mkdir(parents=True)
        model = tokenizers / "fineweb_512_bpe.model"
        train_tokenizer(toy_documents(300, seed=1), 512, model)
        train = list(encode_documents(model, list(toy_documents(400, seed=2)), "train"))
        val = list(encode_documents(model, list(toy_documents(40, seed=3)), "val"))
        self.train = write_shards(data, "fineweb_train", train, SHARD)
        self.val = write_shards(data, "fineweb_val", val, SHARD)
        self.manifest = {
            "datasets": [
                {
                    "name": "fineweb10B_sp512",
                    "tokenizer_name": "sp_bpe_512",
                    "stats": {
                        "files_train": len(self.train),
                        "files_val": len(self.val),
                        "tokens_val": sum(map(len, val)),
                    },
                }
            ],
            "tokenizers": [{"name": "sp_bpe_512", "model_path": "tokenizers/fineweb_512_bpe.model"}],
        }
        self.write_manifest()

    def copy_to(self, root: Path) -> "FakeHub":
        """The same in a folder in which a test may write."""
        other = copy.deepcopy(self)
        other.files = shutil.copytree(self.files, root)
        other.train, other.val = ([root / path.relative_to(self.files) for path in of] for of in (self.train, self.val))
        return other

    def write_manifest(self) -> None:
        (self.files / "datasets/manifest.json").write_text(json.dumps(self.manifest))

    def download(self, *, repo_id, filename, repo_type, revision, cache_dir) -> str:
        assert (repo_id, repo_type, revision) == ("someone/golf", "dataset", None)
        self.asked.append(filename)
        if self.fail_on is not None and filename.endswith(self.fail_on):
            raise ConnectionError("no route\nto host")
        source = self.files / filename
        if not source.is_file():
            raise huggingface_hub.errors.EntryNotFoundError(f"404 {filename}")
        content = source.read_bytes()
        blob = Path(cache_dir, "blobs", hashlib.sha256(content).hexdigest())
        link = Path(cache_dir, "snapshots", "main", filename)
        if not link.is_symlink():
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            if self.spoil is not None and filename.endswith(self.spoil):
                content = content[:-2] + b"\0\0"
            blob.write_bytes(content)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return str(link)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return FakeHub(tmp_path_factory.mktemp("hub") / "remote")


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    fake = published.copy_to(tmp_path / "remote")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    assert len(fake.train) >= 3
    return fake


@pytest.fixture
def config():
    return FinewebConfig(
        vocab_size=512, repo_id="someone/golf", revision=None, root="datasets", variant="sp512",
        train_shards=2, tune_tokens=700,
    )  # fmt: skip


@pytest.mark.parametrize("train_shards", [1, 2, 3])
def test_shards_are_fetched_and_tune_is_cut_from_the_last(hub, config, tmp_path, train_shards):
    config = replace(config, train_shards=train_shards)
    assert config.find(tmp_path / "data") is None and not hub.asked
    prepared = config.prepare(tmp_path / "data", quiet)
    train, val, tune = (TokenStream(prepared.splits[name].shards) for name in ("train", "val", "tune"))
    assert np.array_equal(val.read(0, len(val)), TokenStream(hub.val).read(0, prepared.splits["val"].tokens))
    whole = TokenStream(hub.train[:train_shards])
    whole, tune, train = whole.read(0, len(whole)), tune.read(0, len(tune)), train.read(0, len(train))
    cut = len(whole) - SHARD + int(np.argmax(whole[len(whole) - SHARD :] == 1))  # first document of the last shard
    assert tune[0] == 1 and 700 <= len(tune) < 1500 and whole[cut + len(tune)] == 1
    assert np.array_equal(tune, whole[cut : cut + len(tune)])
    assert np.array_equal(train, np.concatenate([whole[:cut], whole[cut + len(tune) :]]))
    assert not any(f"train_{train_shards:06d}" in name for name in hub.asked)
    verify_prepared(prepared, quiet)
    assert config.find(tmp_path / "data") == config.prepare(tmp_path / "data", quiet) == prepared


def test_shards_stay_in_the_clients_cache_and_the_data_folder_can_be_moved(hub, config, tmp_path):
    prepared = config.prepare(tmp_path / "data", quiet)
    assert tmp_path / "data/hub" in prepared.splits["train"].shards[0].resolve().parents
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = config.find(tmp_path / "moved")
    moved.verify()
    assert moved.digest == prepared.digest


def test_a_failing_download_is_one_line_and_is_resumed(hub, config, tmp_path):
    hub.fail_on = "fineweb_train_000001.bin"
    with pytest.raises(UserError, match=r"data.repo_id=someone/golf: cannot download .*000001.bin .no route") as error:
        config.prepare(tmp_path, quiet)
    assert "\n" not in str(error.value)
    assert config.find(tmp_path) is None
    hub.fail_on = None
    assert len(config.prepare(tmp_path, quiet).splits["train"].shards) == 2


def test_a_wrong_checksum_is_found(hub, config, tmp_path):
    hub.spoil = "fineweb_train_000000.bin"
    with pytest.raises(UserError, match=r"sha256 differs from the hub's .* delete .*blobs") as error:
        config.prepare(tmp_path, quiet)
    Path(str(error.value).split("delete ")[1].split()[0]).unlink()
    (tmp_path / "hub/snapshots/main/datasets/datasets/fineweb10B_sp512/fineweb_train_000000.bin").unlink()
    hub.spoil = None
    config.prepare(tmp_path, quiet)


def test_a_missing_tokenizer_is_a_user_error(hub, config, tmp_path):
    (hub.files / "datasets/tokenizers/fineweb_512_bpe.model").unlink()
    with pytest.raises(UserError, match=r"cannot download datasets/tokenizers/fineweb_512_bpe\.model"):
        config.prepare(tmp_path, quiet)
    hub.manifest["tokenizers"] = []
    hub.write_manifest()
    with pytest.raises(UserError, match=r"manifest\.json is not of the published form .KeyError: 'sp_bpe_512'"):
        config.prepare(tmp_path / "again", quiet)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_shards": 99}, r"data\.train_shards=99: someone/golf has \d+ of sp512"),
        ({"variant": "sp9"}, r"data\.variant=sp9: .* it has sp512"),
        ({"vocab_size": 1024}, r"data\.vocab_size=1024: .* set data\.vocab_size=512"),
        ({"tune_tokens": 5999}, r"data\.tune_tokens=5999: .* try data\.tune_tokens=600"),
        ({"root": "elsewhere"}, r"cannot download elsewhere/manifest\.json"),
    ],
)
def test_what_the_hub_does_not_have_is_a_user_error(hub, config, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        replace(config, **settings).prepare(tmp_path, quiet)


@pytest.mark.parametrize("name", ["train_shards", "tune_tokens"])
def test_counts_must_be_positive(config, name):
    with pytest.raises(ValueError, match=f"^{name}=0 "):
        replace(config, **{name: 0})


def test_tokens_of_another_vocabulary_are_found(hub, config, tmp_path):
    tokens = np.array(open_shard(hub.val[0]))
    tokens[5] = 512
    write_shard(hub.val[0], tokens)
    with pytest.raises(UserError, match="token 5 has id 512"):
        config.prepare(tmp_path, quiet)


def test_a_val_split_of_another_size_than_published_is_found(hub, config, tmp_path):
    write_shard(hub.val[-1], np.array(open_shard(hub.val[-1]))[:-1])
    with pytest.raises(UserError, match="its manifest says"):
        config.prepare(tmp_path, quiet)


@pytest.mark.parametrize("off", [0, 9e-5, -9e-5])
def test_the_scored_text_has_the_published_bytes(hub, config, tmp_path, off):
    found = config.prepare(tmp_path / "data", quiet).splits["val"].bytes
    config.val_bytes = round(found * (1 + off))
    assert config.prepare(tmp_path / "other", quiet) and config.find(tmp_path / "data")


@pytest.mark.parametrize("off", [0.08, -0.08, 2e-4, -2e-4])
def test_scored_text_of_other_bytes_than_published_is_refused(hub, config, tmp_path, off):
    found = config.prepare(tmp_path / "data", quiet).splits["val"].bytes
    config.val_bytes = round(found * (1 + off))
    for folder in ("data", "other"):
        with pytest.raises(UserError, match=rf"val_bytes={config.val_bytes}: the scored text .* has {found} bytes"):
            config.prepare(tmp_path / folder, quiet)
    assert not config.folder(tmp_path / "other").exists(), "what is refused is not kept"
