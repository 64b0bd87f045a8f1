"""Porter's suffix stripping, in the variant of NLTK, whose METEOR this project reproduces.

Source: M. F. Porter, An algorithm for suffix stripping, Program 14.3 (1980), with the changes that NLTK documents for
its default mode: irregular forms, words of one or two letters kept, "ies" / "ied" -> "ie" in words of four letters,
"ied" -> "i", y -> i only after a consonant, vowel + consonant counts as a short stem, "bli" for "abli", "alli" first,
"fulli" and "logi". Words are lower case; digits and apostrophes count as consonants.
"""

from collections.abc import Sequence

Rules = Sequence[tuple[str, str]]                            # (suffix, replacement); the first matching suffix decides

IRREGULAR = {"skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
             "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
             "cannings": "canning", "canning": "canning", "howe": "howe",
             "proceed": "proceed", "exceed": "exceed", "succeed": "succeed"}
PLURALS = (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", ""))
DERIVED = (("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
           ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
           ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"),
           ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"))
ADJECTIVES = (("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
              ("ness", ""))
ENDINGS = tuple((suffix, "") for suffix in (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize"))


def stem(word: str) -> str:
    """The stem of one lower-case word: "slowing" and "slows" -> "slow", "happily" -> "happili".

    A stem need not be a word; it is the same for all forms of a word.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _final_y(_past_or_ing(_plural(word)))
    word = _replace(_derived(word), ADJECTIVES, 1)
    return _final_e_or_ll(_ending(word))


def _plural(word: str) -> str:
    """Step 1a: cars -> car, dies -> die, flies -> fli."""
    return word[:-1] if word.endswith("ies") and len(word) == 4 else _replace(word, PLURALS, 0)


def _past_or_ing(word: str) -> str:
    """Step 1b: agreed -> agree, stopped -> stop, moving -> move, tried -> tri, tied -> tie."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        base = word.removesuffix(suffix)
        if base != word and "v" in _shape(base):
            return _mend(base)
    return word


def _mend(base: str) -> str:
    """Repair a stem that lost -ed or -ing: locat -> locate, stopp -> stop, mov -> move."""
    if base.endswith(("at", "bl", "iz")):
        return base + "e"
    if len(base) > 1 and base[-1] == base[-2] and _shape(base)[-1] == "c":
        return base if base[-1] in "lsz" else base[:-1]
    return base + "e" if _measure(base) == 1 and _is_short(base) else base


def _final_y(word: str) -> str:
    """Step 1c: try -> tri; enjoy and by are kept."""
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c" else word


def _derived(word: str) -> str:
    """Step 2: relational -> relate, carefulli -> careful; -alli is reduced first: radicalli -> radical."""
    while word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]
    if word.endswith("logi"):                                # the l belongs to the stem: geologi -> geolog
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace(word, DERIVED, 1)


def _ending(word: str) -> str:
    """Step 4: adjustment -> adjust, adoption -> adopt; -ion is removed only after s or t."""
    if word.endswith(("sion", "tion")):
        return word[:-3] if _measure(word[:-3]) > 1 else word
    return _replace(word, ENDINGS, 2)


def _final_e_or_ll(word: str) -> str:
    """Step 5: probate -> probat, cease -> ceas, controll -> control; rate and roll are kept."""
    base = word.removesuffix("e")
    if base != word and (_measure(base) > 1 or (_measure(base) == 1 and not _is_short(base))):
        word = base
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _replace(word: str, rules: Rules, measure: int) -> str:
    """Apply the first rule whose suffix matches, if the rest has at least this measure; later rules are not tried."""
    for suffix, replacement in rules:
        if word.endswith(suffix):
            base = word[:len(word) - len(suffix)]
            return base + replacement if _measure(base) >= measure else word
    return word


def _shape(word: str) -> str:
    """c or v for each letter; y is a vowel after a consonant: "yearly" -> "cvvccv"."""
    shape = ""
    for letter in word:
        is_vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if is_vowel else "c"
    return shape


def _measure(base: str) -> int:
    """Porter's m, the number of vowel-to-consonant changes: tree 0, trouble 1, private 2."""
    return _shape(base).count("vc")


def _is_short(base: str) -> bool:
    """True if base ends in consonant, vowel, consonant other than w, x, y ("hop"), or is vowel + consonant ("at")."""
    shape = _shape(base)
    return shape == "vc" or (shape.endswith("cvc") and base[-1] not in "wxy")
