"""From an example to prompt, target and the expert's branch."""

import dataclasses
import re

import pytest
import torch
from PIL import Image

from data.example import Example
from grpo.engine.prompts import (
    PromptSettings,
    answering,
    encode_example,
    encode_target,
    expert_branch,
    expert_branches,
    request_text,
    think_length,
)
from grpo.groups import ScoredBatch
from grpo.sampling import Rollout
from models.processor import Processor
from models.tokenizer import train_bpe
from rewards import Decision


def test_target_is_the_answer_and_the_end_of_turn(processor):
    example = Example(id="x", scene=0, speed=1.0, navigation="Go", decision=Decision("STOP", "STRAIGHT"),
                      reasoning="no")
    # ids are ord(letter) - 33, a blank is 220:  < a n s w e r >
    answer = [27, 64, 77, 82, 86, 68, 81, 29, 220,
              50, 51, 46, 47, 11, 220,                                         # S T O P , blank
              50, 51, 49, 32, 40, 38, 39, 51, 220,                             # S T R A I G H T blank
              27, 14, 64, 77, 82, 86, 68, 81, 29]                              # < / a n s w e r >
    think = [27, 83, 71, 72, 77, 74, 29, 220, 77, 78, 220, 27, 14, 83, 71, 72, 77, 74, 29, 220]  # <think> no </think>
    assert encode_target(example, processor, PromptSettings(reasoning=False)).tolist() == [*answer, 258]
    assert encode_target(example, processor, PromptSettings(reasoning=True)).tolist() == [*think, *answer, 258]


def test_prompt_order_and_generation_prompt(processor, micro_config, picture):
    example = Example(id="x", scene=0, speed=1.0, navigation="Go", decision=Decision("STOP", "STRAIGHT"))
    settings = PromptSettings(prompt_style="compact", max_new_tokens=8)
    prompt = encode_example(example, picture(56, 28), processor, micro_config, settings)
    text = processor.tokenizer.decode(prompt.input_ids.tolist(), skip_special_tokens=False)
    assert text == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
                    "<|image_pad|><|image_pad|><|vision_end|>speed 1.0 m/s. Go.<|im_end|>\n<|im_start|>assistant\n")


def test_hide_removes_picture_or_text(processor, micro_config, picture):
    example = Example(id="x", scene=0, speed=1.0, navigation="Go", decision=Decision("STOP", "STRAIGHT"))

    def encoded(hide):
        settings = PromptSettings(prompt_style="compact", hide=hide, max_new_tokens=8)
        prompt = encode_example(example, picture(56, 28), processor, micro_config, settings)
        return prompt, processor.decode(prompt.input_ids)
    blind, text = encoded("picture")
    assert blind.pixel_values is None and 268 not in blind.input_ids.tolist() and "speed 1.0" in text
    mute, text = encoded("text")
    assert mute.input_ids.tolist().count(268) == 2 and "speed" not in text and "Go" not in text


def test_context_overflow_names_the_example(processor, micro_config):
    small = dataclasses.replace(micro_config, text=dataclasses.replace(micro_config.text, max_position_embeddings=100))
    example = Example(id="long-one", scene=0, speed=1.0, navigation="Go", decision=Decision("STOP", "STRAIGHT"))
    settings = PromptSettings(prompt_style="compact", max_new_tokens=64)
    with pytest.raises(ValueError, match=re.escape("long-one")):
        encode_example(example, Image.new("RGB", (56, 28)), processor, small, settings)


def test_another_answer_needs_other_lengths():
    plan = PromptSettings("compact", max_new_tokens=48)
    driven = answering(plan, "trajectory")
    assert driven == PromptSettings("compact", max_new_tokens=144, answer="trajectory")
    assert answering(plan, "") == answering(plan, "plan") == plan and answering(driven, "trajectory") == driven
    assert answering(driven, "plan").answer == "plan"
    with pytest.raises(ValueError, match="answer is 'way'; it must be one of plan, trajectory"):
        PromptSettings(answer="way")


def test_way_points_in_question_and_target(make_examples, processor):
    settings = PromptSettings("compact", answer="trajectory")
    example = dataclasses.replace(make_examples(1)[0], trajectory=((1.5, -0.5),) * 8)
    assert request_text(example, settings) == "speed 0.0 m/s. Go straight. Way-points."
    assert request_text(example, dataclasses.replace(settings, hide="text")) == "Plan."
    block = "<trajectory>" + " 1.5,-0.5" * 8 + " </trajectory>"
    assert processor.decode(encode_target(example, processor, settings)) == (
        f"<think> clear road </think> <answer> STOP, STRAIGHT </answer> {block}")
    # without a reason the expert's branch borrows a sampled one, and imitates plan and way-points
    silent = dataclasses.replace(example, reasoning=None)
    ids, start = expert_branch(silent, tokens(processor, "<think> x </think> y"), processor, True, "trajectory")
    assert processor.decode(ids) == f"<think> x </think> <answer> STOP, STRAIGHT </answer> {block}"
    assert processor.decode(ids[:start]) == "<think> x </think>"


# ---------------------------------------------------------------- the expert's branch

def test_an_expert_with_a_reason_is_imitated_whole(make_examples, processor):
    example = make_examples(1)[0]
    ids, start = expert_branch(example, [], processor, reasoning=True)
    assert torch.equal(ids, encode_target(example, processor, PromptSettings())) and start == 0
    assert processor.decode(ids) == "<think> clear road </think> <answer> STOP, STRAIGHT </answer>" and ids[-1] == 258


def tokens(processor, *texts):
    return [torch.tensor(processor.encode_text(text)) for text in texts]


def silent(example):
    return type(example)(**{**vars(example), "reasoning": None})


def test_an_expert_without_a_reason_borrows_the_first_closed_think(make_examples, processor):
    samples = tokens(processor, "<think> never closed", "<think> hm </think> <answer> KEEP, STRAIGHT </answer>",
                     "<think> later </think>")
    ids, start = expert_branch(silent(make_examples(1)[0]), samples, processor, reasoning=True)
    assert processor.decode(ids) == "<think> hm </think> <answer> STOP, STRAIGHT </answer>" and ids[-1] == 258
    assert processor.decode(ids[:start]) == "<think> hm </think>"              # 19 letters, a token each: not imitated
    assert start == 19 and processor.decode(ids[start:]) == " <answer> STOP, STRAIGHT </answer>"


def test_no_closed_think_leaves_an_empty_branch(make_examples, processor):
    ids, start = expert_branch(silent(make_examples(1)[0]), tokens(processor, "<think> no"), processor, reasoning=True)
    assert len(ids) == 0 and start == 0


def test_without_reasoning_the_answer_alone_is_imitated(make_examples, processor):
    ids, start = expert_branch(silent(make_examples(1)[0]), [], processor, reasoning=False)
    assert processor.decode(ids) == "<answer> STOP, STRAIGHT </answer>" and start == 0


def test_experts_belong_to_their_groups(make_examples, processor):
    examples = [silent(example) for example in make_examples(2)]
    rows = [*tokens(processor, "<think> a </think>", "x"), *tokens(processor, "y", "<think> b </think>")]
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in rows])[:, None]
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    rollout = Rollout(ids, mask, torch.zeros(mask.shape), [""] * 4, torch.zeros(4, dtype=torch.bool))
    found = expert_branches(ScoredBatch(examples, [None, None], rollout, {}, 0), processor, reasoning=True)
    assert [processor.decode(branch[:start]) for branch, start in found] == ["<think> a </think>", "<think> b </think>"]
    assert ["STOP" in processor.decode(branch) for branch, _ in found] == [True, False]      # the second: KEEP


def test_a_token_that_reaches_into_the_answer_ends_no_think_block():
    joined = Processor(train_bpe(["a><a"] * 50, 256 + 14 + 1))                 # its one merge is ><
    assert len(joined.encode_text("><")) == 1
    (fused,), (apart,) = tokens(joined, "<think> a </think><answer>"), tokens(joined, "<think> a </think> <answer>")
    assert think_length(fused, joined) is None and think_length(apart, joined) == 18


@pytest.mark.parametrize("text", ["<think> a </think>", "</think>"])
def test_think_block_ends_with_its_closing_word(processor, text):
    ids = tokens(processor, text + " more")[0]
    assert think_length(ids, processor) == len(text)         # a token per letter
    assert think_length(ids[:len(text) - 1], processor) is None
