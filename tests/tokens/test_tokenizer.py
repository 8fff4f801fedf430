import json
import unicodedata
from unittest.mock import patch

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from golf.errors import UserError
from golf.tokens import tokenizer as tokenizer_module
from golf.tokens.corpora import TextConfig
from golf.tokens.tokenizer import (
    BOS_ID,
    ByteCounter,
    encode_documents,
    load_tokenizer,
    train_tokenizer,
    training_lines,
)
from golf.tokens.verify import verify_prepared
from tests.helpers.texts import TRICKY
from tests.helpers.tiers import slow
from tests.tokens.helpers import toy_documents


@pytest.fixture(scope="module", params=[(512, 600), slow((1024, 3000))], ids=lambda sizes: sizes[0])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    vocab_size, documents = request.param
    train_tokenizer(toy_documents(documents, seed=5), vocab_size, path)
    return path


def rule(tokenizer, previous, target):
    """The rule once more, from the processor, one token at a time."""

    def boundary(i):
        return tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i)

    piece = tokenizer.id_to_piece(target)
    if boundary(target):
        return 0
    if tokenizer.is_byte(target):
        return 1
    return len(piece.lstrip("\u2581").encode()) + (piece.startswith("\u2581") and not boundary(previous))


def test_counted_bytes_are_the_bytes_of_the_decoded_text(model):
    tokenizer, counter = load_tokenizer(model), ByteCounter.from_tokenizer(model)
    texts = TRICKY + list(toy_documents(50, seed=6))
    documents = list(encode_documents(model, texts, "test"))
    for text, tokens in zip(texts, documents, strict=True):
        assert tokens[0] == BOS_ID and BOS_ID not in tokens[1:]
        decoded = tokenizer.decode(tokens[1:].tolist())
        assert int(counter.stream_bytes(tokens).sum()) == len(decoded.encode()), text
    stream = np.concatenate(documents)
    decoded_bytes = sum(len(tokenizer.decode(d[1:].tolist()).encode()) for d in documents)
    assert counter.total([stream]) == decoded_bytes
    for size in (1, 2, 1000):  # however it is cut into chunks
        assert counter.total(stream[i : i + size] for i in range(0, len(stream), size)) == decoded_bytes


@given(text=st.text(max_size=60))
def test_counted_bytes_are_the_bytes_of_the_decoded_text_whatever_the_text(model, text):
    tokens = next(encode_documents(model, [text], "test"))
    decoded = load_tokenizer(model).decode(tokens[1:].tolist())
    assert int(ByteCounter.from_tokenizer(model).stream_bytes(tokens).sum()) == len(decoded.encode())


def test_encoding_in_many_batches_keeps_each_document_in_its_place(model, monkeypatch):
    texts = [*toy_documents(50, seed=6), *TRICKY]
    whole = [tokens.tolist() for tokens in encode_documents(model, texts, "test")]
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 300)
    assert [tokens.tolist() for tokens in encode_documents(model, texts, "test")] == whole
    assert len(whole) == len(texts) and len({tuple(tokens) for tokens in whole}) > 50


def test_counts_follow_the_rule_for_every_pair_of_tokens(model):
    tokenizer, counter = load_tokenizer(model), ByteCounter.from_tokenizer(model)
    size = tokenizer.vocab_size()
    previous = torch.tensor([0, 1, 2, 3, 4, 100, 259, 260, size - 1])
    target = torch.arange(size)
    counted = counter.count(previous[:, None].expand(-1, size), target[None].expand(len(previous), -1))
    assert counted.dtype == torch.int64 and counted.shape == (len(previous), size)
    expected = [[rule(tokenizer, p, t) for t in range(size)] for p in previous.tolist()]
    assert counted.tolist() == expected


def test_a_word_after_a_control_token_has_no_space_to_count(model):
    tokenizer, counter = load_tokenizer(model), ByteCounter.from_tokenizer(model)
    word = tokenizer.piece_to_id("\u2581the")
    assert not tokenizer.is_unknown(word)
    after = {p: int(counter.count(torch.tensor(p), torch.tensor(word))) for p in (0, 1, 2, 3, 4, word)}
    assert after == {0: 3, 1: 3, 2: 3, 3: 3, 4: 4, word: 4}


def test_tables_move_between_devices(model):
    counter = ByteCounter.from_tokenizer(model)
    moved = counter.to("meta")
    assert moved.base_V.device.type == moved.mark_V.device.type == moved.boundary_V.device.type == "meta"
    assert counter.base_V.device.type == "cpu"


def test_the_model_has_upstreams_settings_and_no_path(model, tmp_path):
    tokenizer = load_tokenizer(model)
    ids = tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()
    assert ids == (0, 1, 2, 3)
    assert [tokenizer.is_byte(i) for i in (3, 4, 259, 260)] == [False, True, True, False]
    assert tokenizer.encode("the", out_type=str)[0][0] == "t"  # no dummy prefix
    assert all(len(tokenizer.id_to_piece(i).strip("\u2581")) == 1 for i in tokenizer.encode("31415"))
    assert tokenizer.decode(tokenizer.encode("ﬁ  x\n²")) == unicodedata.normalize("NFKC", "ﬁ x ²")
    assert b"/" + b"tmp" not in model.read_bytes()


def test_training_is_reproducible(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_tokenizer(toy_documents(300, seed=1), 400, tmp_path / name / "tokenizer.model")
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()


def test_lines_lose_nothing_and_fit_the_trainer():
    texts = ["", "x" * 2500, "word " * 900, "😀" * 1500, "a\nb" * 800, "y" * 1000]
    for text in texts:
        lines = list(training_lines([text]))
        assert "".join(lines) == text
        assert all(len(line) <= 1000 and len(line.encode()) <= 4192 for line in lines)
    assert all(line.startswith(" ") for line in list(training_lines(["word " * 900]))[1:])


def test_long_documents_reach_the_trainer(tmp_path):
    """The trainer drops sentences over 4,192 bytes: one long document alone would leave it nothing."""
    train_tokenizer([" ".join(toy_documents(200, seed=2))], 400, tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path / "tokenizer.model").vocab_size() == 400


def test_a_vocabulary_larger_than_the_text_can_fill_names_the_size_it_can(tmp_path):
    path = tmp_path / "tokenizer.model"
    texts = list(toy_documents(20, seed=3))
    with pytest.raises(UserError, match=r"data\.vocab_size=5000 .* set data\.vocab_size=(\d+)") as error:
        train_tokenizer(texts, 5000, path)
    assert not path.exists()
    reached = int(str(error.value).split("set data.vocab_size=")[1].split()[0])
    train_tokenizer(texts, reached, path)
    assert load_tokenizer(path).vocab_size() == reached


def test_a_vocabulary_smaller_than_the_characters_names_the_size_they_need(tmp_path):
    texts = list(toy_documents(20, seed=3))
    with pytest.raises(UserError, match=r"data\.vocab_size=270: .*need at least \d+") as error:
        train_tokenizer(texts, 270, tmp_path / "tokenizer.model")
    train_tokenizer(texts, int(str(error.value).split()[-1]), tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byte_fallback": False}, "byte_fallback=True"),
        ({"byte_fallback": True, "split_by_whitespace": False}, "has a space inside"),
    ],
)
def test_tokenizers_whose_bytes_cannot_be_counted_are_refused(tmp_path, options, message):
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(toy_documents(300, seed=1)),
            model_writer=file,
            model_type="bpe",
            vocab_size=600,
            minloglevel=2,
            **options,
        )
    with pytest.raises(UserError, match=message):
        ByteCounter.from_tokenizer(path)


TRANSFORMED = {
    "U+E001": ({"user_defined_symbols": ["\ue001", "\ue002"]}, r"piece 4, '\\ue001', marks a transform"),
    "planes 15 and 16": ({"control_symbols": ["\U0010fffd"]}, r"'\\U0010fffd', marks a transform"),
    "a word": ({"user_defined_symbols": ["<up>"]}, "piece 4, '<up>', is a user-defined symbol"),
    "folded case": ({"normalization_rule_name": "nmt_nfkc_cf"}, "changes letters"),
    "folded case, no NMT": ({"normalization_rule_name": "nfkc_cf"}, "changes letters"),
    "a rule of one's own": ({"normalization_rule_tsv": "RULE"}, "changes letters"),
    "another text decoded": ({"denormalization_rule_tsv": "RULE"}, "changes text again where it decodes"),
}
KEPT = {
    "NFKC": {"normalization_rule_name": "nfkc"},
    "text as it is": {"normalization_rule_name": "identity"},
    "all spaces": {"remove_extra_whitespaces": False},
    "a space in front": {"add_dummy_prefix": True},
    "line ends": {"user_defined_symbols": ["\n", "\t"]},
    "control symbols": {"control_symbols": ["<x>"]},
}


def prepared_with(options, folder):
    """A prepared folder whose tokenizer was trained with other options."""
    config = TextConfig(
        path=str(folder / "text.jsonl"), vocab_size=400, text_key="text", separator=None, val_one_in=4, tune_one_in=4
    )
    texts = list(toy_documents(60, seed=1))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "rule.tsv").write_text("41\t61 62\n")
    options = {key: str(folder / "rule.tsv") if value == "RULE" else value for key, value in options.items()}
    trained = tokenizer_module._trained
    with patch.object(tokenizer_module, "_trained", lambda texts, size: trained(texts, size, **options)):
        return config.prepare(folder / "data", log=lambda message: None)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_tokenizers_of_transformed_text_are_refused(tmp_path, name):
    options, message = TRANSFORMED[name]
    with pytest.raises(UserError, match=message):
        prepared_with(options, tmp_path)
    assert list((tmp_path / "data/prepared").glob("text-*/")) == [], "what is refused is not kept"


@pytest.mark.parametrize("name", KEPT)
def test_tokenizers_of_the_text_as_it_is_are_taken(tmp_path, name):
    prepared = prepared_with(KEPT[name], tmp_path)
    verify_prepared(prepared, log=lambda message: None)


def test_a_tokenizer_without_a_token_for_the_space_is_refused(model, tmp_path):
    content = model.read_bytes()
    mark, other = (
        b"\x0a\x03" + "\u2581".encode(),
        b"\x0a\x03" + "ꙮ".encode(),
    )  # a piece of the model's protobuf
    assert content.count(mark) == 1
    (tmp_path / "bad.model").write_bytes(content.replace(mark, other))
    with pytest.raises(UserError, match=r"U\+2581 alone is not a token"):
        ByteCounter.from_tokenizer(tmp_path / "bad.model")


def test_a_file_that_is_no_model_is_a_user_error(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name in ("bad.model", "missing.model"):
        with pytest.raises(UserError, match=name):
            load_tokenizer(tmp_path / name)
