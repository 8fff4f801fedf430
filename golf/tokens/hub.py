"""The challenge's own tokens: FineWeb shards, already tokenised, from the Hugging Face hub.

Layout of the published sets (openai/parameter-golf, data/cached_challenge_fineweb.py), under `root`:
manifest.json, which names data sets and tokenizers; tokenizers/*.model; and in datasets/fineweb10B_<variant>/
fineweb_train_000000.bin and so on, and the like for val.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from golf.errors import UserError
from golf.fields import OPERATIONAL, positive
from golf.files import MOST_TEXT, parse_json, read_bytes
from golf.tokens.prepare import DataConfig, Log, Prepared, Split, describe_split
from golf.tokens.shards import TokenStream, check_ids, file_sha256, open_shard, write_shard
from golf.tokens.tokenizer import ByteCounter, load_tokenizer

BYTES_OFF = 1e-4  # published totals of one text differ by 0.005 %: each leaves out another end


@dataclass(kw_only=True, slots=True)
class FinewebConfig(DataConfig):
    """A published set of FineWeb tokens: all of its val shards and the first `train_shards` train shards.

    The last of these also gives the tune split: whole documents, at least `tune_tokens`, from the first that
    begins in it. The rest of that shard stays in train; so it is for one shard and for many. `revision` null
    is the newest. val_bytes: what published scores of this text divide by, whatever the tokenizer, within BYTES_OFF;
    null: nothing was published.
    """

    stock_tokenizer: ClassVar[bool] = True
    repo_id: str
    revision: str | None
    root: str
    variant: str
    train_shards: int
    tune_tokens: int
    val_bytes: int | None = field(default=None, metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        positive(train_shards=self.train_shards, tune_tokens=self.tune_tokens, val_bytes=self.val_bytes)

    def corpus(self) -> str:
        return f"fineweb_{self.variant}"

    def identity(self) -> dict[str, Any]:
        names = ("repo_id", "revision", "root", "variant", "train_shards", "tune_tokens")
        return {name: getattr(self, name) for name in names}

    def check_bytes(self, prepared: Prepared) -> None:
        found = prepared.splits["val"].bytes or 0
        if self.val_bytes is not None and abs(found / self.val_bytes - 1) > BYTES_OFF:
            raise UserError(
                f"data.val_bytes={self.val_bytes}: the scored text of {self.repo_id} has {found} bytes by "
                "its tokenizer, so its scores would not be those of the published text; null accepts another text"
            )

    def build(self, folder: Path, data_dir: Path, log: Log) -> Prepared:
        """Download (resumed where it broke off), check, and cut the tune split."""
        cache = data_dir / "hub"
        dataset, tokenizer_file = self._published(cache)
        files_train, files_val = dataset["stats"]["files_train"], dataset["stats"]["files_val"]
        if self.train_shards > files_train:
            raise UserError(
                f"data.train_shards={self.train_shards}: {self.repo_id} has {files_train} of {self.variant}; "
                f"try data.train_shards={files_train}"
            )
        model, bos_id = self._tokenizer(tokenizer_file, folder, cache)
        val = [self._shard("val", i, cache, log) for i in range(files_val)]
        train = [self._shard("train", i, cache, log) for i in range(self.train_shards)]
        counter = ByteCounter.from_tokenizer(model)
        splits = {"val": describe_split(val, counter, bos_id)}
        published = dataset["stats"].get("tokens_val")
        if published is not None and splits["val"].tokens != published:
            raise UserError(
                f"{self.repo_id}: the val shards hold {splits['val'].tokens} tokens, its manifest says "
                f"{published}; delete {cache} and download again"
            )
        tune, rest = self._cut(open_shard(train[-1]), train[-1], bos_id)
        write_shard(folder / "tune_000000.bin", tune)
        write_shard(folder / f"train_{len(train) - 1:06d}.bin", rest)
        train[-1] = folder / f"train_{len(train) - 1:06d}.bin"
        splits["tune"] = describe_split([folder / "tune_000000.bin"], counter, bos_id)
        splits["train"] = Split(
            shards=train,
            tokens=len(TokenStream(train)),
            documents=None,
            bytes=None,
            shard_sha256=[file_sha256(path) for path in train],
        )
        return Prepared(
            corpus=self.corpus(),
            folder=folder,
            tokenizer=model,
            vocab_size=self.vocab_size,
            bos_id=bos_id,
            splits={name: splits[name] for name in ("train", "val", "tune")},
            tokenizer_sha256=file_sha256(model),
            text_sha256=None,
            settings=self.identity(),
        )

    def _published(self, cache: Path) -> tuple[dict[str, Any], str]:
        """(the data set's entry in the hub's manifest, the name of its tokenizer's .model file)."""
        path = self._download("manifest.json", cache)
        name = f"fineweb10B_{self.variant}"
        try:
            manifest = parse_json(read_bytes(path, MOST_TEXT))
            datasets = {entry["name"]: entry for entry in manifest["datasets"]}
            tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
            if name not in datasets:
                known = ", ".join(sorted(key.removeprefix("fineweb10B_") for key in datasets))
                raise UserError(f"data.variant={self.variant}: {self.repo_id} has no {name}; it has {known}")
            dataset = datasets[name]
            int(dataset["stats"]["files_train"]), int(dataset["stats"]["files_val"])
            return dataset, tokenizers[dataset["tokenizer_name"]]["model_path"]
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"data.repo_id={self.repo_id}: its {self.root}/manifest.json is not of the published form "
                f"({type(error).__name__}: {error}); check data.repo_id, data.root and data.revision"
            ) from None

    def _tokenizer(self, name: str, folder: Path, cache: Path) -> tuple[Path, int]:
        """(the model, copied into `folder`; its BOS id)."""
        model = folder / "tokenizer.model"
        shutil.copyfile(self._download(name, cache), model)
        tokenizer = load_tokenizer(model)
        if tokenizer.vocab_size() != self.vocab_size:
            raise UserError(
                f"data.vocab_size={self.vocab_size}: the tokenizer of {self.variant} has "
                f"{tokenizer.vocab_size()} tokens; set data.vocab_size={tokenizer.vocab_size()}"
            )
        return model, tokenizer.bos_id()

    def _shard(self, split: str, index: int, cache: Path, log: Log) -> Path:
        """One shard, downloaded and checked: header, ids, and the sha256 by which the hub names its blob."""
        name = f"datasets/fineweb10B_{self.variant}/fineweb_{split}_{index:06d}.bin"
        log(f"{self.repo_id}: {split} shard {index + 1}")
        path = self._download(name, cache)
        blob = path.resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
            raise UserError(f"{path}: sha256 differs from the hub's {blob.name}; delete {blob} and run this again")
        check_ids(path, self.vocab_size)
        return path

    def _download(self, name: str, cache: Path) -> Path:
        """A file of the hub's, from `cache` if it is there. Its client resumes a download that broke off."""
        import huggingface_hub  # slow to import, and needed for nothing else

        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo_id=self.repo_id,
                    filename=f"{self.root}/{name}",
                    repo_type="dataset",
                    revision=self.revision,
                    cache_dir=cache,
                )
            )
        except Exception as error:  # its client lets errors of several network libraries through
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"data.repo_id={self.repo_id}: cannot download {self.root}/{name} ({reason}); run it again "
                f"to resume, or copy the folder {cache} from a machine that has it"
            ) from None

    def _cut(self, tokens: np.ndarray, path: Path, bos_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(tune, the rest) of the last train shard; the end of an earlier document at its head is rest."""
        starts = np.flatnonzero(tokens == bos_id)
        ends = starts[starts >= starts[0] + self.tune_tokens] if len(starts) else starts
        if not len(ends):
            raise UserError(
                f"data.tune_tokens={self.tune_tokens}: the last train shard, {path.name}, has "
                f"{len(tokens)} tokens, so no document would be left in it for training; try "
                f"data.tune_tokens={max(1, len(tokens) // 10)}"
            )
        return tokens[starts[0] : ends[0]], np.concatenate([tokens[: starts[0]], tokens[ends[0] :]])
