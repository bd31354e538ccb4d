"""A WordNet of a dozen meanings, written in the format of the real one's files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_wordnet"]

# Part of speech → sets of synonyms. A word's senses are in the order in which it appears.
SYNSETS = {
    "noun": (
        ("movie", "film", "pic", "motion_picture"),
        ("film", "coating"),
        ("star",),
        ("star", "lead"),
        ("actor", "thespian", "player"),
        ("player", "gambler"),
        ("mouse", "rodent"),
        ("leaf", "foliage"),
        ("play", "drama"),
        ("Rome", "capital"),
        ("vitamin", "e"),
        ("café", "bistro"),
    ),
    "verb": (("film", "shoot"), ("enjoy", "relish"), ("leave", "depart"), ("play",), ("bore", "tire")),
    "adj": (("brilliant", "superb(a)"), ("left", "remaining(p)"), ("bored", "weary"), ("small", "little")),
    "adv": (("really", "truly", "genuinely"), ("not", "non")),
}
IRREGULAR = {
    "noun": ("leaves leaf", "mice mouse"),
    "verb": ("left leave",),
    "adj": ("worse bad", "best best"),
    "adv": (),
}
TYPES = {"noun": "n", "verb": "v", "adj": "s", "adv": "r"}
LICENCE = "  1 This file is a test's; the real ones begin with a licence in lines like this.  "


def write_wordnet(folder: Path, newline: str = "\n") -> Path:
    """Write the files into a new folder, with line ends of a kind, and return the folder."""
    folder.mkdir()
    for part, synsets in SYNSETS.items():
        data, senses = [LICENCE], dict[str, list[str]]()
        for words in synsets:
            offset = f"{sum(len(line.encode()) + 1 for line in data):08d}"
            listed = " ".join(f"{word} 0" for word in words)
            data.append(f"{offset} 03 {TYPES[part]} {len(words):02x} {listed} 001 @ 00000000 n 0000 | a gloss; one two")
            for word in words:
                senses.setdefault(word.partition("(")[0].lower(), []).append(offset)
        index = [LICENCE]
        for lemma in sorted(senses):
            count = len(senses[lemma])
            index.append(f"{lemma} {TYPES[part][0]} {count} 2 @ ~ {count} 1 {' '.join(senses[lemma])}  ")
        files = {f"data.{part}": data, f"index.{part}": index, f"{part}.exc": list(IRREGULAR[part])}
        for name, lines in files.items():
            text = "".join(line + newline for line in lines)
            (folder / name).write_bytes(text.encode())
    return folder
