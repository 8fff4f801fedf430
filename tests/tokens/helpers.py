"""Small synthetic texts, and data prepared from them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from golf.tokens.corpora import TextConfig
from golf.tokens.shards import write_shard

COMMON = """
the of and to in a is that it was for on with as his they be at one have this from or had by hot but some
what there we can out other were all your when up use word how said an each she which do their time if will
way about many then them would write like so these her long make thing see him two has look more day could
go come did my sound no most number who over know water than call first people may down side been now find
any new work part take get place made live where after back little only round man year came show every good
me give our under name very through just form great think say help low line before turn cause same mean
differ move right
"""
WORDS = COMMON.split()
SPICE = [
    "café",
    "naïve",
    "Zürich",
    "“quoted”",
    "😀",
    "👩‍🚀",
    "日本語",
    "x²",
    "ﬁne",
    "£5",
    "3,141",
    "don't",
    "—",
    "A.I.",
]


def toy_documents(n: int, seed: int) -> Iterator[str]:
    """n documents of English-like text with emoji, double spaces, line breaks and accents."""
    source = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    for _ in range(n):
        sentences = []
        for _ in range(source.randint(1, 12)):
            words = source.choices(WORDS, weights, k=source.randint(3, 14))
            if source.random() < 0.5:
                words.insert(source.randrange(len(words)), source.choice(SPICE))
            sentences.append(" ".join(words).capitalize() + source.choice(".!?"))
        yield source.choice([" ", "  ", "\n", "\n\n"]).join(sentences)


def toy_data(folder: Path, documents: int = 400, seed: int = 0, **settings: Any) -> TextConfig:
    """A TextConfig over a file of toy documents, written into `folder`; prepares in about 0.1 s."""
    path = folder / f"toy-{documents}-{seed}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in toy_documents(documents, seed)))
    return text_config(path, **settings)


def text_config(path: Path, **settings: Any) -> TextConfig:
    defaults: dict[str, Any] = {
        "path": str(path),
        "text_key": "text",
        "separator": None,
        "vocab_size": 512,
        "val_one_in": 8,
        "tune_one_in": 8,
    }
    return TextConfig(**{**defaults, **settings})


def toy_shards(folder: Path, sizes: list[int], seed: int = 0, vocab: int = 60000) -> list[Path]:
    """Shards of random tokens with a BOS (id 1) at the start and at about every 20th token."""
    source = np.random.default_rng(seed)
    paths = []
    for index, size in enumerate(sizes):
        tokens = source.integers(4, vocab, size).astype(np.uint16)
        tokens[source.random(size) < 0.05] = 1
        tokens[0] = 1 if index == 0 else tokens[0]
        paths.append(folder / f"toy_{index:06d}.bin")
        write_shard(paths[-1], tokens)
    return paths
