"""What a run saves beside the weights: the model card, and the adapter of a LoRA run."""

import json
import re

import pytest
import torch

import eval as evaluate
import train
from data.files import write_examples
from grpo.engine.card import add_scores, base_licence, model_card
from grpo.engine.checkpoint import load_policy, save_policy
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.prompts import PromptSettings


@pytest.fixture
def base(make_model, processor, make_examples, tmp_path):
    """A small model, and examples of it in a file."""
    save_policy(make_model(stop=0.9), processor, PromptSettings("compact", max_new_tokens=60), {}, tmp_path / "base")
    write_examples(make_examples(4), tmp_path / "data.jsonl")
    return tmp_path / "base"


def run(*flags):
    train.main([*map(str, flags), "--steps", "1", "--device", "cpu", "--eval-examples", "0"])


def test_a_merge_that_rounds_the_training_away_is_told(base, tmp_path, capsys):
    flags = ("--stage", "sft", "--model", base, "--data", tmp_path / "data.jsonl", "--batch-size", "2",
             "--lora-rank", "2", "--precision", "bf16")
    run(*flags, "--learning-rate", "1e-7", "--output", tmp_path / "small")
    assert "model keeps 0% of what the adapters learned" in capsys.readouterr().out
    run(*flags, "--learning-rate", "1", "--output", tmp_path / "large")
    assert "of what the adapters learned" not in capsys.readouterr().out


def test_a_lora_run_saves_its_adapter(base, tmp_path, capsys):
    lora = ("--stage", "sft", "--data", tmp_path / "data.jsonl", "--batch-size", "2", "--lora-rank", "2",
            "--learning-rate", "0.1")
    run(*lora, "--model", base, "--output", tmp_path / "out")
    about = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (2, 32.0, str(base))
    merged, _, settings = load_policy(tmp_path / "out/model", torch.float32, "cpu")
    model, _, from_adapter = load_policy(base, torch.float32, "cpu", adapter=str(tmp_path / "out/adapter"))
    plain = load_policy(base, torch.float32, "cpu")[0]
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
    assert from_adapter == settings == PromptSettings("compact", max_new_tokens=60)

    # evaluation and further training start from base and adapter as from the merged model
    for number, flags in enumerate((("--model", tmp_path / "out/model"),
                                    ("--model", base, "--adapter", tmp_path / "out/adapter"))):
        evaluate.main([*map(str, flags), "--data", str(tmp_path / "data.jsonl"), "--device", "cpu",
                       "--output", str(tmp_path / f"e{number}")])
        run(*lora, *flags, "--output", tmp_path / f"next{number}")
    one, two = (tmp_path / "e0/predictions.jsonl").read_text(), (tmp_path / "e1/predictions.jsonl").read_text()
    assert one == two and not (tmp_path / "next1/adapter").exists() and (tmp_path / "next0/adapter").exists()
    losses = [json.loads((tmp_path / f"next{i}/metrics.jsonl").read_text().splitlines()[0])["loss"] for i in (0, 1)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(SystemExit, match=f"holds a PEFT adapter of '{base}', not a model. Give both: --model"):
        run(*lora, "--model", tmp_path / "out/adapter", "--output", tmp_path / "no")


@pytest.mark.parametrize(("flags", "budget"), [([], (784, 401_408)), (["--max-pixels", "3000"], (784, 3000))])
def test_an_adapter_sees_pictures_in_the_size_of_its_training(base, tmp_path, flags, budget):
    """The base is a published one: no settings of ours, and a budget far above the cap."""
    (base / "drivegrpo.json").unlink()
    (base / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 12_845_056}))
    run("--stage", "sft", "--data", tmp_path / "data.jsonl", "--batch-size", "2", "--lora-rank", "2", "--model", base,
        "--output", tmp_path / "out", *flags)
    for model, adapter in ((tmp_path / "out/model", ""), (base, str(tmp_path / "out/adapter"))):
        read = load_policy(model, torch.float32, "cpu", adapter=adapter)[1]
        assert (read.min_pixels, read.max_pixels) == budget
    (tmp_path / "out/adapter/drivegrpo.json").rename(tmp_path / "kept.json")    # another program's: the base's limit
    (tmp_path / "out/adapter/preprocessor_config.json").write_text(json.dumps({"max_pixels": 12_845_056}))
    assert load_policy(base, torch.float32, "cpu", adapter=str(tmp_path / "out/adapter"))[1].max_pixels == 401_408
    (tmp_path / "kept.json").rename(tmp_path / "out/adapter/drivegrpo.json")
    (tmp_path / "out/adapter/preprocessor_config.json").unlink()                # as earlier versions left it
    assert load_policy(base, torch.float32, "cpu", adapter=str(tmp_path / "out/adapter"))[1].max_pixels == 401_408


def test_a_run_that_trains_every_weight_saves_none(base, tmp_path):
    run("--stage", "sft", "--model", base, "--data", tmp_path / "data.jsonl", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "metrics.jsonl", "model"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--model", "tiny", "--adapter", "x"], "adapter .*left out with --model tiny"),
    (["--model", "{base}", "--adapter", "{base}"], "base has no adapter_config.json; give the directory of a LoRA"),
])
def test_adapters_that_make_no_sense(base, tmp_path, flags, words):
    with pytest.raises(SystemExit, match=words):
        run("--stage", "sft", "--data", tmp_path / "data.jsonl", "--output", tmp_path / "out",
            *(flag.format(base=base) for flag in flags))


# ---------------------------------------------------------------- the card

def test_the_card_is_in_the_model_and_gets_its_scores(base, tmp_path, capsys):
    run("--stage", "sft", "--model", base, "--data", tmp_path / "data.jsonl", "--output", tmp_path / "out")
    card = (tmp_path / "out/model/README.md").read_text()
    assert card.startswith(f'---\nbase_model: "{base}"\n')
    assert "| trained on | 4 examples of data.jsonl (split train) |" in card
    assert "Not scored yet" in card and "It must not control a vehicle" in card and "not known here" in card
    evaluate.main(["--model", str(tmp_path / "out/model"), "--data", str(tmp_path / "data.jsonl"), "--device", "cpu",
                   "--samples", "2", "--temperature", "0.5"])
    scored = (tmp_path / "out/model/README.md").read_text()
    assert "4 of 4 examples scored (data.jsonl, split test; 2 samples each at T = 0.5)." in scored
    assert "| out " in scored and "Not scored yet" not in scored
    assert evaluate.scored_on(evaluate.EvalConfig(prior="natural", samples=0)) == "prior natural, split test"
    assert scored.split("<!-- scores -->")[0] == card.split("<!-- scores -->")[0]
    assert scored.split("<!-- /scores -->")[1] == card.split("<!-- /scores -->")[1]


def test_cards_of_others_are_left_alone(tmp_path):
    assert not add_scores(tmp_path, "scores")
    (tmp_path / "README.md").write_text("mine")
    assert not add_scores(tmp_path, "scores") and (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(("text", "licence"), [
    ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Qwen", "apache-2.0"), ('---\nlicense: "mit"\n---\n', "mit"),
    ("# A model\nlicense: none of the front matter", None), (None, None)])
def test_the_licence_of_the_base(tmp_path, text, licence):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert base_licence(str(tmp_path)) == licence
    card = model_card("sft", SFTFlags(model=str(tmp_path)), 3, {"step": 1})
    assert (f'\nlicense: "{licence}"\n' in card) == (licence is not None)
    assert f"It is {licence or 'not known here'}" in card


def test_the_card_of_the_built_in_model():
    card = model_card("grpo", GRPOFlags(model="tiny", split="rl"), 3000, {"step": 7, "val_accuracy": 0.5,
                                                                         "rewards": ["planning", "a|b"]})
    assert re.match(r'---\nlicense: "mit"\npipeline_tag', card)
    assert "| stage | grpo (grpo, group size 8, beta 0.04), step 7, seed 0 |" in card
    assert "| trained on | 3,000 built-in scenes (split rl, prior balanced) |" in card
    assert "| rewards | planning, a\\|b |" in card and "planning accuracy 0.5000, greedy" in card
