"""BLEU-4, CIDEr and METEOR of reasoning texts against one reference each, equal to the usual tools.

Hypotheses and references are lists of equal length; tokens are lower-case `[a-z0-9']+` without punctuation.
Values are fractions (CIDEr: 0 to 10); tables print them x 100. An empty hypothesis scores 0; no text is left out.
All three compare words only: none measures whether the reason is true of the picture.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from evaluation.stemmer import stem
from rewards.actions import has_reasoning

Tokens = list[str]
Grams = Counter[tuple[str, ...]]

MAX_N = 4
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9                          # added by the COCO tools to avoid 0 and division by 0
CIDER_SIGMA = 6.0
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5


def think_text(completion: str) -> str:
    """The text of a completion's leading `<think>` block, "" if there is none or more than one."""
    return completion.split("<think>")[1].split("</think>")[0].strip() if has_reasoning(completion) else ""


def bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 in [0, 1]: counts are summed over all texts before the ratios are taken.

        p[n]  = n-grams shared with the reference / n-grams of the hypotheses,      n = 1 ... 4
        BLEU  = min(1, exp(1 - reference words / hypothesis words)) * (p[1] p[2] p[3] p[4]) ^ (1/4)

    As in the COCO caption tools, 1e-15 is added to numerators and 1e-9 to denominators: a corpus without a shared
    4-gram scores near 0, and one whose texts are too short for 4-grams (three correct words) 1e-6 ^ (1/4) = 0.032.
    Raises: ValueError if the lists are empty, differ in length or contain something other than text.
    Source: Papineni et al., ACL 2002, sec. 2; guards from pycocoevalcap's Bleu.
    """
    pairs = _tokenized(hypotheses, references)
    hypothesis_length, reference_length = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    product = 1.0
    for n in range(1, MAX_N + 1):
        counts = [(_grams(hypothesis, n), _grams(reference, n)) for hypothesis, reference in pairs]
        shared = sum((hypothesis & reference).total() for hypothesis, reference in counts)
        product *= (shared + BLEU_TINY) / (sum(hypothesis.total() for hypothesis, _ in counts) + BLEU_SMALL)
    ratio = (hypothesis_length + BLEU_TINY) / (reference_length + BLEU_SMALL)
    return product ** (1 / MAX_N) * math.exp(min(0.0, 1 - 1 / ratio))


def cider(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """CIDEr-D in [0, 10], mean over texts: similarity of n-grams, weighted down if many references contain them.

        g[w]  = count of w * ln(N / number of the N references that contain w)
        text  = 10 * mean_n sum_w min(g_hyp[w], g_ref[w]) g_ref[w] / (|g_hyp| |g_ref|) * exp(-d^2 / (2 * 6^2))

    n = 1 ... 4, d = difference in length. The weights depend on the references: compare values only over the same
    references. A single text, or equal references everywhere, score 0 because every weight is 0.
    Raises: ValueError as `bleu4`.
    Source: Vedantam et al., arXiv:1411.5726, sec. 4 (CIDEr-D); details as in pycocoevalcap's Cider.
    """
    pairs = _tokenized(hypotheses, references)
    total = 0.0
    for n in range(1, MAX_N + 1):
        counts = [(_grams(hypothesis, n), _grams(reference, n)) for hypothesis, reference in pairs]
        seen = Counter(gram for _, reference in counts for gram in reference)
        total += sum(_likeness(_weighted(hypothesis, seen, len(pairs)), _weighted(reference, seen, len(pairs)))
                     * _length_factor(*pair) for (hypothesis, reference), pair in zip(counts, pairs, strict=True))
    return 10 * total / (MAX_N * len(pairs))


def meteor(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """METEOR in [0, 1], mean over texts, with exact and stem matches but without WordNet synonyms.

        F     = P R / (0.9 P + 0.1 R)             P, R = matched words / hypothesis, reference words
        text  = F * (1 - 0.5 * (chunks / matched words)^3)

    A chunk is a run of matches adjacent in both texts. Values differ from the full tool's, which has synonyms: say so
    where you compare with published values.
    Raises: ValueError as `bleu4`.
    Source: Banerjee and Lavie, ACL 2005 workshop; parameters and alignment as in NLTK's single_meteor_score.
    """
    pairs = _tokenized(hypotheses, references)
    return sum(_meteor(hypothesis, reference) for hypothesis, reference in pairs) / len(pairs)


def _meteor(hypothesis: Tokens, reference: Tokens) -> float:
    matches = _align(hypothesis, reference)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(hypothesis), len(matches) / len(reference)
    mean = precision * recall / (METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall)
    chunks = 1 + sum((i + 1, j + 1) != later for (i, j), later in zip(matches, matches[1:], strict=False))
    return mean * (1 - METEOR_GAMMA * (chunks / len(matches)) ** METEOR_BETA)


def _align(hypothesis: Tokens, reference: Tokens) -> list[tuple[int, int]]:
    """Matched positions in the order of the hypothesis: equal words first, then equal stems of the remaining words."""
    matches = _match(dict(enumerate(hypothesis)), dict(enumerate(reference)))
    used = set(matches), set(matches.values())
    stems = [{i: stem(word) for i, word in enumerate(words) if i not in taken}
             for words, taken in zip((hypothesis, reference), used, strict=True)]
    return sorted((matches | _match(*stems)).items())


def _match(hypothesis: dict[int, str], reference: dict[int, str]) -> dict[int, int]:
    """{position: position}: from the last word on, each word takes the last free equal word of the reference."""
    free = {}
    for j, word in reference.items():
        free.setdefault(word, []).append(j)
    return {i: free[word].pop() for i, word in reversed(hypothesis.items()) if free.get(word)}


def _weighted(grams: Grams, seen: Grams, references: int) -> dict[tuple[str, ...], float]:
    """Counts times ln(references / references with the n-gram); an n-gram in none is weighted as if it were in one."""
    return {gram: count * math.log(references / max(1, seen[gram])) for gram, count in grams.items()}


def _likeness(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    """Cosine of the weights, with those of `a` clipped to those of `b`, so that repeating a word gains nothing."""
    shared = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
    return shared / math.sqrt(_square(a) * _square(b)) if shared else 0.0


def _length_factor(hypothesis: Tokens, reference: Tokens) -> float:
    return math.exp(-(len(hypothesis) - len(reference)) ** 2 / (2 * CIDER_SIGMA ** 2))


def _square(weights: dict[tuple[str, ...], float]) -> float:
    return sum(weight ** 2 for weight in weights.values())


def _grams(tokens: Tokens, n: int) -> Grams:
    return Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1))


def _tokenized(hypotheses: Sequence[str], references: Sequence[str]) -> list[tuple[Tokens, Tokens]]:
    """(hypothesis, reference) tokens of every text."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("hypotheses and references must be lists of texts: put a single text into a list")
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError("references and hypotheses must be equally many and at least one, got "
                         f"{len(references)} and {len(hypotheses)}")
    for i, text in enumerate((*hypotheses, *references)):
        if not isinstance(text, str):
            raise ValueError(f"text {i % len(hypotheses)} is {text!r}: leave out examples without a reasoning text")
    return [tuple(re.findall(r"[a-z0-9']+", text.lower()) for text in pair)
            for pair in zip(hypotheses, references, strict=True)]
