"""eval.py and evaluation/scoring.py: scores by hand; batches, interruptions and temperatures change nothing."""

import json
import math
from dataclasses import replace

import pytest
import torch

import eval as evaluate
from data.example import Example
from evaluation import scoring
from grpo.engine.checkpoint import save_policy
from grpo.engine.flags import EvalConfig, SFTFlags
from grpo.engine.prompts import PromptSettings
from models.config import PRESETS
from models.processor import fit_config
from models.qwen2_vl import Qwen2VL, new_model
from rewards import Decision, parse_plan

KEEP, STOP, TURN = "KEEP, STRAIGHT", "STOP, STRAIGHT", "KEEP, LEFT_TURN"
REASON = "The light is red and I am slow, so I stop and stay in lane."


def answer(plan, think="Because."):
    return f"<think> {think} </think> <answer> {plan} </answer>"


def name(text):
    plan = parse_plan(text)
    return None if plan is None else str(plan)


def line(id, truth, text, samples=(), **more):
    """A line of predictions.jsonl."""
    return {"id": id, "image": "x.png", "scene": None, "prompt": "?", "truth": truth, "acceptable": None,
            "factors": None, "reason": None, "text": text, "truncated": False, "decision": name(text),
            "samples": list(samples), "sample_decisions": [name(sample) for sample in samples], **more}


def records(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


# ---------------------------------------------------------------- scores by hand

def test_scores_by_hand():
    rows = [line("a", STOP, answer(STOP), [answer(STOP)] * 2),
            line("b", STOP, answer(KEEP), [answer(KEEP), answer(STOP)]),
            line("c", KEEP, "nothing", ["nothing", answer(KEEP)]), line("d", KEEP, answer(KEEP), [answer(KEEP)] * 2)]
    for row in rows:
        row["acceptable"] = [row["truth"], KEEP]
    metrics = scoring.score(rows)
    assert metrics["planning_accuracy"] == 0.5 and metrics["invalid_rate"] == 0.25
    assert metrics["acceptable_accuracy"] == 0.75                       # right, acceptable, unreadable, right
    low, high = metrics["planning_accuracy_interval"]
    assert 0.0 <= low < 0.5 < high <= 1.0
    assert metrics["sampled"]["planning_accuracy"] == 0.75              # (2 + 1 + 1 + 2) / 8
    # two groups of one plan: 0; two of two outcomes: ln 2 each
    assert metrics["sampled"]["plan_entropy"] == pytest.approx(math.log(2) / 2)
    assert metrics["invalid_causes"]["no_answer"] == 0.25 and metrics["sampled"]["invalid_causes"]["no_answer"] == 0.125
    assert metrics["majority"] == {"plan": STOP, "accuracy": 0.5}       # two of four, named before the other two
    assert "bayes_ceiling" not in metrics and metrics["text"] is None and metrics["multimodality"] == []


def test_counts_of_four_pairs():
    """KEEP -> KEEP, STOP -> KEEP, KEEP -> invalid, STOP -> STOP. KEEP: 1 hit, 1 wrong, 1 missed; STOP: 1, 0, 1."""
    everything = "KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN"
    rows = [line("a", KEEP, answer(KEEP)), line("b", STOP, answer(KEEP)), line("c", KEEP, answer(everything)),
            line("d", STOP, answer(STOP, "KEEP, LEFT_TURN"))]           # words of the reasoning do not count
    metrics = scoring.score(rows)
    assert metrics["planning_accuracy"] == 0.5 and metrics["invalid_causes"]["several_plans"] == 0.25
    assert metrics["speed"]["KEEP"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert metrics["speed"]["STOP"]["precision"] == 1.0 and metrics["speed"]["STOP"]["f1"] == pytest.approx(2 / 3)


def test_naming_every_action_scores_nothing():
    hedge = answer("KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN")
    metrics = scoring.score([line("a", STOP, hedge), line("b", KEEP, hedge)])
    assert metrics["planning_accuracy"] == metrics["speed_accuracy"] == metrics["path_accuracy"] == 0.0
    assert metrics["invalid_rate"] == 1.0


def test_curve_by_hand():
    rows = [line("a", KEEP, answer(KEEP), acceptable=[KEEP, STOP], sweep={"0.5": [KEEP, KEEP], "2": [STOP, KEEP]}),
            line("b", KEEP, answer(KEEP), acceptable=[KEEP, TURN], sweep={"0.5": [KEEP, KEEP], "2": [None, STOP]}),
            line("c", KEEP, answer(KEEP), acceptable=[KEEP], sweep={"0.5": [STOP, STOP], "2": [STOP, STOP]})]
    cold, hot = scoring.score(rows)["multimodality"]                    # c has one acceptable plan: not counted
    assert (cold["temperature"], cold["scenes"], cold["validity"], cold["coverage"]) == (0.5, 2, 1.0, 0.5)
    assert (hot["temperature"], hot["validity"], hot["coverage"]) == (2.0, 0.5, 0.5)      # (1 + 0) / 2, (1 + 0) / 2
    assert hot["pass_at_k"]["acceptable"] == {"1": 0.5, "2": 0.5} and hot["total_variation"] is None


def test_reasons_by_hand():
    scene = {"scene": 3, "image": None, "reason": REASON}
    rows = [line("a", STOP, answer(STOP, REASON), **scene), line("b", STOP, answer(KEEP, REASON), **scene),
            line("c", STOP, f"<answer> {STOP} </answer>", **scene), line("d", KEEP, answer(KEEP), scene=3)]
    metrics = scoring.score(rows)
    text = metrics["text"]
    assert text["count"] == 3                                           # d has nothing to be compared with
    # two texts of 15 words equal their reference, one is empty; one chunk of 15: 1 - 0.5 / 15^3
    assert text["meteor"] == pytest.approx(2 / 3 * (1 - 0.5 / 3375))
    # 30 of 45 words are written, all n-grams of them right: brevity exp(1 - 45 / 30)
    assert text["bleu4"] == pytest.approx(math.exp(-0.5), rel=1e-6) and text["cider"] == 0.0   # equal references
    assert text["faithfulness"] == text["consistency"] == pytest.approx(1 / 3)      # of a, b, c only a
    assert text["factors"]["recall"] == pytest.approx(2 / 3) and text["factors"]["understood"] == pytest.approx(2 / 3)
    assert metrics["bayes_ceiling"] > metrics["bayes_ceiling_sampled"] > 0


def test_reasons_of_real_pictures_are_compared_as_text_alone():
    text = scoring.score([line("a", STOP, answer(STOP, REASON), reason=REASON)])["text"]
    assert text["meteor"] > 0.99 and "factors" not in text and "faithfulness" not in text


# ---------------------------------------------------------------- tables and comparisons

def test_row_of_the_papers_table():
    # left: a truth LEFT_CHANGE answered LEFT_TURN is right on the paper's three paths, and no right plan of ours
    rows = [line("a", STOP, answer(STOP)), line("b", "KEEP, LEFT_CHANGE", answer(TURN)), line("c", KEEP, answer(STOP))]
    metrics = scoring.score(rows)
    row = scoring.paper_row(metrics)
    assert row["Acc."] == pytest.approx(1 / 3) and row["path left"] == row["path straight"] == 1.0
    assert row["path right"] is None and row["ceiling"] is None and row["METEOR"] is None
    assert row["speed keep"] == row["speed stop"] == pytest.approx(2 / 3)
    header, rule, cells = scoring.paper_table({"mine": {**metrics, "bayes_ceiling": 0.8123}}).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "run", "scenes", "Acc.", "ceiling", "path straight", "path left", "path right", "speed keep", "speed acc.",
        "speed dec.", "speed stop", "BLEU-4", "CIDEr", "METEOR"]
    assert set(rule) <= set("|- ")
    assert [cell.strip() for cell in cells.split("|")[1:-1]] == [
        "mine", "3", "33.3 (0.0 to 100.0)", "81.2", "100.0", "100.0", "-", "66.7", "-", "-", "66.7", "-", "-", "-"]


def predictions(right, offset=0):
    return [line(f"s{i + offset}", STOP, answer(STOP if good else KEEP), [answer(STOP if good else KEEP)])
            for i, good in enumerate(right)]


def test_paired_difference_by_hand():
    found = scoring.paired_difference(predictions([1, 0, 0, 0, 0, 1]), predictions([0, 1, 1, 1, 1, 1]))
    greedy = found["greedy"]
    assert greedy["difference"] == pytest.approx(0.5)                   # 5 / 6 - 2 / 6
    assert (greedy["only_base"], greedy["only_other"]) == (1, 4)
    assert greedy["p_value"] == 0.375                                   # 2 (C(5,0) + C(5,1)) / 2^5
    low, high = greedy["interval"]
    assert low < 0.5 < high and found["sampled"]["difference"] == pytest.approx(0.5)
    text = scoring.difference_text("new", "old", found)
    assert "new minus old" in text and "+50.0" in text and "right alone 4 and 1 scenes" in text and "p = 0.38" in text
    alone = scoring.paired_difference(predictions([1]), [{**predictions([1])[0], "sample_decisions": []}])
    assert alone["sampled"] is None and "sampled" not in scoring.difference_text("a", "b", alone)


def test_scenes_are_joined_on_their_id():
    runs = {"a": predictions([1, 0, 1]), "b": predictions([0, 1, 1], offset=1)[::-1]}
    common = scoring.common_scenes(runs)
    assert [row["id"] for row in common["a"]] == [row["id"] for row in common["b"]] == ["s1", "s2"]
    with pytest.raises(ValueError, match="no scene in common"):
        scoring.common_scenes({"a": predictions([1]), "b": predictions([1], offset=5)})
    with pytest.raises(ValueError, match="scene s0 has different truths"):
        scoring.common_scenes({"a": predictions([1]), "b": [line("s0", KEEP, "")]})
    with pytest.raises(ValueError, match="b answers some id twice"):
        scoring.common_scenes({"a": predictions([1]), "b": predictions([1]) * 2})


def test_compare_reads_files_directories_and_runs(tmp_path, capsys):
    for folder, right in (("one", [1, 0, 0]), ("two/eval-test", [1, 1, 0]), ("three", [1, 1, 1, 1])):
        (tmp_path / folder).mkdir(parents=True)
        evaluate.append_lines(tmp_path / folder / "predictions.jsonl", predictions(right))
    places = [str(tmp_path / place) for place in ("one", "two", "three/predictions.jsonl")]
    evaluate.main(["--compare", *places])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "3 scenes that all runs answered, of up to 4"
    assert [text.split("|")[3].split()[0] for text in shown[3:6]] == ["33.3", "66.7", "100.0"]
    assert sum(" minus " in text for text in shown) == 2 and f"minus {places[0]}" in shown[6]
    for wrong, word in ((places[:1], "two or more"), ([places[0]] * 2, "different"), ([places[0], "gone"], "gone")):
        with pytest.raises(SystemExit, match=word):
            evaluate.main(["--compare", *wrong])


# ---------------------------------------------------------------- answers

@pytest.fixture
def planner(make_model, processor):
    """Untrained, with answers of different lengths."""
    return make_model(stop=0.9), processor, PromptSettings("compact", max_new_tokens=12)


def answered(planner, examples, **flags):
    """Lines of predictions.jsonl by id."""
    config = EvalConfig(model="unused", **{"samples": 2, **flags})
    batches = evaluate.answer(planner, examples, range(len(examples)), config)
    return {row["id"]: row for batch in batches for row in batch}


def test_the_batch_size_changes_nothing(planner, make_examples):
    examples = [*make_examples(5), Example(id="long", scene=9, speed=12.5, navigation="Keep going straight for 200 m",
                                           decision=Decision("KEEP", "STRAIGHT"))]
    alone = answered(planner, examples, batch_size=1)
    texts = [text for row in alone.values() for text in (row["text"], *row["samples"])]
    assert len(set(texts)) > 6 and len({len(row["text"]) for row in alone.values()}) > 1
    for size in (2, 4, 6):
        assert answered(planner, examples, batch_size=size) == alone


def test_the_batch_size_changes_nothing_for_tiny(processor, make_examples):
    model = new_model(fit_config(PRESETS["tiny"], processor.tokenizer), torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(6)                         # likely and unlikely tokens, as in conftest
    planner = model, processor, PromptSettings("compact", max_new_tokens=8)
    alone = answered(planner, make_examples(5), batch_size=1, samples=0)
    assert len({row["text"] for row in alone.values()}) > 1
    for size in (3, 5):
        assert answered(planner, make_examples(5), batch_size=size, samples=0) == alone


def test_longest_requests_come_first(planner, make_examples):
    examples = [Example(id=text, scene=1, speed=1.0, navigation=text, decision=Decision("KEEP", "STRAIGHT"))
                for text in ("Go", "Go straight on", "Go on")]
    config = EvalConfig(model="unused", batch_size=1, samples=0)
    order = [row["id"] for batch in evaluate.answer(planner, examples, range(3), config) for row in batch]
    assert order == ["Go straight on", "Go on", "Go"]


def test_temperatures_reach_the_sampler_and_pictures_are_read_once(planner, make_examples, monkeypatch):
    heats, pictures = [], []
    real, encode = evaluate.Sampler, Qwen2VL.image_features
    monkeypatch.setattr(evaluate, "Sampler", lambda *given: heats.append(given[2]) or real(*given))
    monkeypatch.setattr(Qwen2VL, "image_features", lambda *given: pictures.append(1) or encode(*given))
    rows = answered(planner, make_examples(3), samples=3, temperature=0.6, temperatures="1.5,0.25")
    assert heats == [0.0, 0.25, 0.6, 1.5] and len(pictures) == 3
    for row in rows.values():
        assert list(row["sweep"]) == ["0.25", "0.6", "1.5"] and row["sweep"]["0.6"] == row["sample_decisions"]
        assert len(row["samples"]) == len(row["samples_truncated"]) == 3
    plain = answered(planner, make_examples(3), samples=0)
    assert all(row["samples"] == [] and row["sweep"] == {} for row in plain.values())
    assert [row["text"] for row in plain.values()] == [row["text"] for row in rows.values()]


@pytest.mark.parametrize("flags", [{"temperatures": "0.5,0"}, {"temperatures": "warm"}, {"temperatures": "nan"},
                                   {"temperatures": "0.5", "samples": 0}, {"resume": True, "overwrite": True}])
def test_impossible_flags_are_refused(flags):
    with pytest.raises(ValueError, match="--temperatures|--resume"):
        EvalConfig(**flags)


@pytest.mark.parametrize("size", ["448", "448x", "27x112", "224x4097", "448 x 224", "x", "٤٤٨x224"])
def test_sizes_that_cannot_be_drawn_are_refused(size):
    for config in (EvalConfig, SFTFlags):
        with pytest.raises(ValueError, match="--scene-size is .* such as 448x224"):
            config(scene_size=size)


def test_the_sweep_holds_every_temperature_once():
    assert EvalConfig(temperatures="1.5,0.25,1").sweep == (0.25, 1.0, 1.5)
    assert EvalConfig().sweep == (1.0,) and EvalConfig(samples=0).sweep == ()


# ---------------------------------------------------------------- interrupted and resumed

@pytest.fixture
def model_directory(planner, tmp_path):
    save_policy(*planner, {}, tmp_path / "model")
    return tmp_path / "model"


def command(model, output, *more):
    evaluate.main([str(word) for word in ("--model", model, "--output", output, "--limit", 5, "--samples", 2,
                                          "--batch-size", 2, "--device", "cpu", *more)])


def test_files_are_whole_and_in_the_order_of_the_data(model_directory, tmp_path, capsys):
    command(model_directory, tmp_path / "out", "--temperatures", "0.5")
    rows = records(tmp_path / "out/predictions.jsonl")
    assert [row["id"] for row in rows] == [f"test-0-{i:06d}" for i in range(5)]
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [point["temperature"] for point in metrics["multimodality"]] == [0.5, 1.0]
    assert metrics["text"]["count"] == 5 and metrics["factors"]["night"]
    table = (tmp_path / "out/table.md").read_text()
    assert table.startswith("| run ") and table in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "metrics.json", "predictions.jsonl", "table.md"]


def sizes_seen(monkeypatch):
    """Collects the sizes of the pictures that eval.py encodes."""
    seen, encode = [], evaluate.encode_example
    monkeypatch.setattr(evaluate, "encode_example", lambda example, picture, *rest: seen.append(picture.size) or
                        encode(example, picture, *rest))
    return seen


def test_pictures_are_as_large_as_in_training_unless_said(planner, tmp_path, monkeypatch, capsys):
    policy, processor, settings = planner
    save_policy(policy, processor, replace(settings, scene_size="112x84"), {}, tmp_path / "model")
    seen = sizes_seen(monkeypatch)
    command(tmp_path / "model", tmp_path / "own")
    assert set(seen) == {(112, 84)} and "note" not in capsys.readouterr().out
    seen.clear()
    command(tmp_path / "model", tmp_path / "other", "--scene-size", "56x28")
    assert set(seen) == {(56, 28)}
    assert "learnt from pictures of 112x84, it is scored on 56x28" in capsys.readouterr().out
    for name, size in (("own", "112x84"), ("other", "56x28")):
        for file in ("metrics.json", "config.json"):
            assert json.loads((tmp_path / name / file).read_text())["scene_size"] == size
    with pytest.raises(SystemExit, match="scene_size was '56x28' and is '112x84'"):
        command(tmp_path / "model", tmp_path / "other", "--resume")


def test_a_prior_has_its_own_scenes_ceiling_and_majority(model_directory, tmp_path):
    evaluate.main(["--model", str(model_directory), "--prior", "natural", "--limit", "40", "--samples", "0",
                   "--device", "cpu"])
    out = tmp_path / "eval-test-natural"
    metrics, rows = json.loads((out / "metrics.json").read_text()), records(out / "predictions.jsonl")
    assert metrics["prior"] == json.loads((out / "config.json").read_text())["prior"] == "natural"
    assert [row["id"] for row in rows] == [f"natural-test-0-{i:06d}" for i in range(40)]
    # three of four natural labels are KEEP, STRAIGHT, and the ceiling is .978; of balanced ones .158 STOP, and .806
    assert metrics["majority"]["plan"] == "KEEP, STRAIGHT" and 0.6 < metrics["majority"]["accuracy"] < 0.9
    assert 0.93 < metrics["bayes_ceiling"] < 1.0
    with pytest.raises(SystemExit, match="prior was 'natural' and is 'balanced'"):
        command(model_directory, out, "--resume")


def test_an_interrupted_scoring_goes_on_where_it_was(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "whole")
    real, written, asked = evaluate.append_lines, [], []

    def append(file, rows):
        if written:
            raise KeyboardInterrupt
        written.extend(rows)
        real(file, rows)
    monkeypatch.setattr(evaluate, "append_lines", append)
    with pytest.raises(KeyboardInterrupt):
        command(model_directory, tmp_path / "parts")
    monkeypatch.setattr(evaluate, "append_lines", real)
    file = tmp_path / "parts/predictions.jsonl"
    assert len(records(file)) == 2 and not (tmp_path / "parts/metrics.json").exists()
    content = file.read_bytes()
    file.write_bytes(content + content[:40])                            # a line half written
    encode = evaluate.encode_example
    monkeypatch.setattr(evaluate, "encode_example", lambda example, *rest: asked.append(example.id) or
                        encode(example, *rest))
    command(model_directory, tmp_path / "parts", "--resume")
    assert len(asked) == 3 and not {row["id"] for row in written} & set(asked)
    for left in ("predictions.jsonl", "metrics.json", "table.md"):
        assert (tmp_path / "parts" / left).read_text() == (tmp_path / "whole" / left).read_text()


def test_resume_begins_what_was_not_begun_and_scores_what_is_finished(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "out", "--resume")
    before = (tmp_path / "out/metrics.json").read_text()
    (tmp_path / "out/metrics.json").unlink()
    monkeypatch.setattr(evaluate, "encode_example", None)               # nothing is asked again
    command(model_directory, tmp_path / "out", "--resume")
    assert (tmp_path / "out/metrics.json").read_text() == before


def test_resume_where_no_line_was_finished(model_directory, tmp_path):
    command(model_directory, tmp_path / "out")
    file = tmp_path / "out/predictions.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    command(model_directory, tmp_path / "out", "--resume")
    assert file.read_bytes() == whole


def test_a_torn_rewrite_of_an_earlier_end_is_forgotten(model_directory, tmp_path):
    command(model_directory, tmp_path / "out")
    file = tmp_path / "out/predictions.jsonl"
    whole = file.read_bytes()
    file.with_name("predictions.jsonl.tmp").write_bytes(whole[:40])     # killed while putting the lines in order
    command(model_directory, tmp_path / "out", "--resume")
    assert file.read_bytes() == whole


def test_resume_refuses_other_settings_weights_and_data(model_directory, tmp_path, planner, make_model):
    out = tmp_path / "out"
    command(model_directory, out)
    kept = (out / "predictions.jsonl").read_bytes()
    for flags, words in ((("--seed", 1), "seed was 0 and is 1"), (("--samples", 3), "samples was 2 and is 3"),
                         (("--temperature", 0.5), "temperature"), (("--max-new-tokens", 5), "max_new_tokens")):
        with pytest.raises(SystemExit, match=words):
            command(model_directory, out, "--resume", *flags)
    rows = records(out / "predictions.jsonl")
    (out / "predictions.jsonl").write_text(json.dumps({**rows[0], "truth": "KEEP, RIGHT_CHANGE"}) + "\n")
    with pytest.raises(SystemExit, match=f"answers {rows[0]['id']}"):
        command(model_directory, out, "--resume")
    (out / "predictions.jsonl").write_bytes(kept)
    save_policy(make_model(seed=1), *planner[1:], {}, model_directory)  # trained again in between
    with pytest.raises(SystemExit, match="weights"):
        command(model_directory, out, "--resume")
    assert (out / "predictions.jsonl").read_bytes() == kept


def test_a_fault_before_the_first_answer_keeps_the_earlier_scores(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "out")
    before = (tmp_path / "out/metrics.json").read_text()

    def broken(*given):
        raise ValueError("picture 0 is cut short")
    monkeypatch.setattr(evaluate, "encode_example", broken)
    with pytest.raises(SystemExit, match="picture 0"):
        command(model_directory, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out/metrics.json").read_text() == before
