"""Whether two English words are forms of one, or could not stand in each other's place for their endings."""

from __future__ import annotations

__all__ = ["NUMBERS", "are_forms"]

_NUMBERS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion second third fourth fifth sixth
seventh eighth ninth tenth half double
"""
NUMBERS = frozenset(_NUMBERS.split())
_INFLECTIONS = ("ing", "est", "ly", "ed", "er", "s")
# Base form, then past forms; verbs that people use daily. What is regular needs no list.
_VERBS = """
arise arose arisen, awake awoke awoken, bear bore borne born, beat beaten, begin began begun, bend bent, bind bound,
bite bit bitten, bleed bled, blow blew blown, break broke broken, breed bred, bring brought, build built, burn burnt,
buy bought, catch caught, choose chose chosen, come came, creep crept, deal dealt, dig dug, draw drew drawn, dream
dreamt, drink drank drunk, drive drove driven, eat ate eaten, fall fell fallen, feed fed, feel felt, fight fought, find
found, flee fled, fly flew flown, forbid forbade forbidden, forget forgot forgotten, forgive forgave forgiven, freeze
froze frozen, get got gotten, give gave given, go went gone, grind ground, grow grew grown, hang hung, hear heard, hide
hid hidden, hold held, keep kept, kneel knelt, know knew known, lay laid, lead led, lean leant, leap leapt, learn
learnt, leave left, lend lent, lie lain, light lit, lose lost, make made, mean meant, meet met, pay paid, prove proven,
ride rode ridden, ring rang rung, rise rose risen, run ran, say said, see saw seen, seek sought, sell sold, send sent,
sew sewn, shake shook shaken, shine shone, shoot shot, show shown, shrink shrank shrunk, sing sang sung, sink sank
sunk, sit sat, sleep slept, slide slid, speak spoke spoken, speed sped, spend spent, spin spun, spit spat, spring
sprang sprung, stand stood, steal stole stolen, stick stuck, sting stung, strike struck stricken, strive strove
striven, swear swore sworn, sweep swept, swell swollen, swim swam swum, swing swung, take took taken, teach taught,
tear tore torn, tell told, think thought, throw threw thrown, tread trod trodden, understand understood, wake woke
woken, wear wore worn, weave wove woven, weep wept, win won, wind wound, write wrote written
"""
_NOUNS = """
child children, foot feet, goose geese, leaf leaves, life lives, loaf loaves, man men, mouse mice, ox oxen, person
people, shelf shelves, thief thieves, tooth teeth, wife wives, wolf wolves, woman women, half halves, self selves
"""
_ADJECTIVES = "good better best, bad worse worst, far farther further farthest furthest"


def _groups(text: str) -> list[list[str]]:
    return [group.split() for group in text.split(",")]


_BASE = {form: group[0] for part in (_VERBS, _NOUNS, _ADJECTIVES) for group in _groups(part) for form in group}
_ENDING = {form: "ed" for group in _groups(_VERBS) for form in group[1:]}
_ENDING |= {form: "s" for group in _groups(_NOUNS) for form in group[1:]}
_ENDING |= {"better": "er", "worse": "er", "best": "est", "worst": "est"}


def are_forms(one: str, other: str) -> bool:
    """Say whether two words are forms of one word, one made of the other, or inflected unlike each other.

    >>> are_forms("story", "stories"), are_forms("made", "make"), are_forms("happy", "unhappy")
    (True, True, True)
    >>> are_forms("movies", "film"), are_forms("found", "locate")
    (True, True)
    >>> are_forms("movies", "films"), are_forms("found", "located")
    (False, False)
    """
    alike = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return (
        alike >= max(3, min(len(one), len(other)) - 2)
        or one in other
        or other in one
        or _BASE.get(one, one) == _BASE.get(other, other)
        or _inflection(one) != _inflection(other)
    )


def _inflection(word: str) -> str:
    """Return the ending that says how a word is inflected, and that of regular words for those that are not."""
    if word in _ENDING:
        return _ENDING[word]
    return next((end for end in _INFLECTIONS if word.endswith(end) and not word.endswith("ss")), "")
