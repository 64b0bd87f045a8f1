"""Make tests/golden/text_metrics.json: what the usual tools say about a fixed list of texts and words.

Run from the repository root in an environment of its own (the project itself never needs these packages):

    python3 -m venv ~/texttools && ~/texttools/bin/pip install nltk==3.10.4 pycocoevalcap==1.2
    ~/texttools/bin/python tests/golden/make_text_metrics.py

BLEU and CIDEr are the COCO caption tools' scorers, called on our tokens, so their own tokenizer (Java) is not needed.
METEOR is NLTK's single_meteor_score with a WordNet that knows no synonym. Stems are NLTK's default Porter stemmer's.
"""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

FILE = Path(__file__).parent / "text_metrics.json"
PAIRS = (                                                    # (hypothesis, reference)
    ("The light is red and I am fast, so I stop and stay in lane.",
     "The light is red and I am fast, so I stop and stay in lane."),
    ("The light is green and my speed is moderate, so I keep my speed and go straight.",
     "The light is red and I am fast, so I slow down and go straight."),
    ("A pedestrian is crossing and I am slow, hence I stop.",
     "Someone walks across my lane and I am slow, hence I stop and stay in lane."),
    ("so I stop because the light is red", "the light is red so I stop"),
    ("Cars braking ahead; slowing down.", "The car ahead brakes, so I slow down."),
    ("", "The road ahead is clear, so I speed up and go straight."),
    ("?! ...", "Cones block my lane and the left lane is free, so I change left."),
    ("stop stop stop stop stop stop", "A red light is ahead, so I stop."),
    ("the the the the the the the the", "the car in the lane near the junction is the one that brakes"),
    ("go straight", "The junction is far, the road bends left, so I keep my speed and go straight."),
    ("stop", "stop"),
    ("red light", "red light"),
    ("I turn left", "I turn left"),
    ("I then turn left", "I then turn left"),
    ("The near car shows brake lamps and I am fast, so I slow down and go straight, and then I will watch the road "
     "for people who may walk out between the parked cars on the right side of the street.",
     "The near car brakes and I am fast, so I slow down and go straight."),
    ("I am at the junction and I am slow and the route turns right, so I keep my speed and turn right.",
     "The junction is near, I am slow and the route turns right, hence I keep my speed and turn right."),
    ("It's yellow; I don't accelerate.", "It's a yellow light, I don't speed up."),
    ("its yellow", "it's yellow"),
    ("SPEED 4.2 m/s, limit 50 km/h", "speed 4.2 m/s, limit 30 km/h"),
    ("Accelerating happily through crossings and junctions", "accelerate happy through crossing and junction"),
    ("stopping stopped stops stop", "stop stops stopped stopping"),
    ("the car the light the lane", "the lane the light the car"),
    ("left right left right left right left", "left left right right left"),
    ("A parked car blocks my lane, the left lane is free, so I change left.",
     "A car is parked ahead and the left lane is free, so I change left."),
    ("The far light is yellow and I am fast, so I slow down and go straight.",
     "The far light is yellow and I am fast, hence I slow down and go straight."),
    ("Das Licht ist rot.", "The light is red and I stand still, so I stay stopped."),
    ("Ich warte à l’arrêt, naïve café", "waiting at the café, naïve"),
    ("lane my in stay and stop I so fast am I and red is light the",
     "The light is red and I am fast, so I stop and stay in lane."),
    ("My lane is clear and I stand still, so I start and go straight.",
     "The road ahead is clear and I stand still, so I start and go straight."),
    ("A near car drives in my lane\nand I am slow,\n\nso I hold back.",
     "A near car drives in my lane and I am slow, so I keep my speed and go straight."),
    ("A bend to the left comes and my speed is moderate, so I keep my speed and go straight.",
     "The road bends left and my speed is moderate, hence I keep my speed and go straight."),
    ("turning signals indicate a turn is signalled", "the turn signal indicates turning"),
    ("Someone stands at the kerb and I am slow, so I slow down and go straight.", "A pedestrian waits at the kerb."),
    ("I stop.", ""),
)
WORDS = """slowing slows slowed braking brakes braked crossing crossings crossed junctions skies dying lying tying news
inning outings canning howe proceed exceed succeed proceeding dies died tied tries tried flies relied caresses ponies
caress cats s ss is as us feed agreed need plastered bled motoring sing conflated troubled sized hopping tanned falling
hissing fizzed failing filing moving owing eying happy happily sky by try enjoy yearly yyyed relational conditional
rational valency hesitancy digitizer conformably possibly radically formally differently vilely analogously
vietnamization predication operator feudalism decisiveness hopefulness callousness formality sensitivity sensibility
carefully geology theology biology triplicate formative formalize electricity electrical hopeful goodness revival
allowance inference airliner gyroscopic adjustable defensible irritant replacement adjustment dependent adoption
million onion vision conclusion homologous communism activate angularity effective bowdlerize probate rate cease rolled
controlled roll it's don't 50 4th 2ed acceleration accelerating decelerates navigation pedestrians approaching
conditionally internationally playing stayed
necessary safely occupied visibility yielding yields congestion ie eed ing ally totally""".split()


def tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def coco(scorer: Bleu | Cider, hypotheses: list[str], references: list[str], **options: int) -> tuple:
    """A COCO scorer's (corpus value, values per text)."""
    def keyed(texts: list[str]) -> dict:
        return {i: [" ".join(tokens(text))] for i, text in enumerate(texts)}

    return scorer.compute_score(keyed(references), keyed(hypotheses), **options)


class NoSynonyms:
    """Stands in for WordNet."""

    def synsets(self, word: str) -> list:
        return []


def nltk_meteor(hypotheses: list[str], references: list[str]) -> list[float]:
    return [single_meteor_score(tokens(reference), tokens(hypothesis), wordnet=NoSynonyms())
            for hypothesis, reference in zip(hypotheses, references, strict=True)]


def values(indices: list[int]) -> dict:
    """What the tools say about some of the pairs, taken as one corpus."""
    hypotheses, references = ([PAIRS[i][side] for i in indices] for side in (0, 1))
    meteors = nltk_meteor(hypotheses, references)
    return {"pairs": indices, "bleu4": coco(Bleu(4), hypotheses, references, verbose=0)[0][3],
            "cider": float(coco(Cider(), hypotheses, references)[0]), "meteor": sum(meteors) / len(meteors)}


def main() -> None:
    every, hypotheses, references = list(range(len(PAIRS))), [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    stemmer = PorterStemmer()
    corpora = {"all": every, "even": every[::2], "odd": every[1::2], "first ten": every[:10], "last six": every[-6:],
               "two equal ones": [0, 0], "first and last": [0, len(PAIRS) - 1], "nothing said": [5, 6],
               "short ones": [10, 11, 12, 13, 17]}
    fixture = {
        "made_by": "tests/golden/make_text_metrics.py",
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in ("nltk", "pycocoevalcap", "numpy")}},
        "hypotheses": hypotheses, "references": references,
        "corpora": {name: values(indices) for name, indices in corpora.items()},
        "single": {"bleu4": coco(Bleu(4), hypotheses, references, verbose=0)[1][3],
                   "meteor": nltk_meteor(hypotheses, references)},
        "stems": {word: stemmer.stem(word) for word in WORDS},
    }
    FILE.write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main()
