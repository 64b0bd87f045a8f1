"""config.json in its many forms."""

import json
from dataclasses import replace

import pytest

from models.config import PRESETS, Qwen2VLConfig, TextConfig, VisionConfig

HUB_2B = {
    "model_type": "qwen2_vl", "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656,
    "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768,
    "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936,
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
                      "hidden_size": 1536, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
                      "temporal_patch_size": 2},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}


def test_flat_hub_form():
    config = Qwen2VLConfig.from_dict(HUB_2B)
    assert config == PRESETS["2b"]
    assert (config.text.head_dim, config.vision.head_dim, config.vision.patch_dim) == (128, 80, 1176)
    assert config.stop_token_ids == (151645, 151643) and config.pad_token_id == 151643
    assert config.suppressed_token_ids == (151652, 151653, 151654, 151655, 151656)


def test_nested_form_of_transformers_5():
    # The nested part has its own (wrong) tie_word_embeddings; rope_theta stands in rope_parameters.
    outer = ("model_type", "vision_config", "tie_word_embeddings", "vision_token_id", "image_token_id",
             "video_token_id", "vision_start_token_id", "vision_end_token_id")
    inner = {key: value for key, value in HUB_2B.items() if key not in (*outer, "rope_theta", "rope_scaling")}
    inner |= {"model_type": "qwen2_vl_text", "tie_word_embeddings": False, "dtype": "bfloat16",
              "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}}
    assert Qwen2VLConfig.from_dict({**{key: HUB_2B[key] for key in outer}, "text_config": inner}) == PRESETS["2b"]


def test_reduced_vision_config_of_transformers_4_45():
    reduced = {"hidden_size": 1536, "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14}
    rope = {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}
    assert Qwen2VLConfig.from_dict({**HUB_2B, "vision_config": reduced, "rope_scaling": rope}) == PRESETS["2b"]


def test_channels_are_read_under_both_names():
    for name in ("in_chans", "in_channels"):
        assert Qwen2VLConfig.from_dict({**HUB_2B, "vision_config": {name: 1}}).vision.in_channels == 1


def test_end_token_may_be_a_list_and_vision_token_absent():
    config = Qwen2VLConfig.from_dict({**HUB_2B, "eos_token_id": [151645, 151643], "vision_token_id": None})
    assert config.eos_token_id == 151645
    assert config.suppressed_token_ids == (151652, 151653, 151655, 151656)


@pytest.mark.parametrize("name", PRESETS)
def test_written_form_reads_back(name):
    config = replace(PRESETS[name], tie_word_embeddings=False)
    assert Qwen2VLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("change", "words"), [
    ({"model_type": "qwen2_5_vl"}, "model_type 'qwen2_5_vl' is not supported; this code runs Qwen2-VL .*Qwen2.5-VL"),
    ({"model_type": "qwen3_vl"}, "model_type 'qwen3_vl' is not supported; this code runs Qwen2-VL .*Qwen3-VL"),
    ({"model_type": None}, "model_type None is not supported; this code runs Qwen2-VL"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "rope type 'yarn'"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}, "mrope_section .*64"),
    ({"num_attention_heads": 7}, "1536 is not a multiple of num_attention_heads 7"),
    ({"num_key_value_heads": 5}, "12 is not a multiple of num_key_value_heads 5"),
    ({"vision_config": {"hidden_size": 8}}, "hidden_size 8 must equal"),
    ({"vision_config": {"num_heads": 7}}, "embed_dim 1280 is not a multiple"),
])
def test_unusable_configs_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Qwen2VLConfig.from_dict({**HUB_2B, **change})


def test_files_are_named_in_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        Qwen2VLConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="config.json: model_type 'llama'"):
        Qwen2VLConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        Qwen2VLConfig.from_directory(tmp_path)


def test_towers_stand_alone():
    assert TextConfig().head_dim == 128 and VisionConfig().head_dim == 80


def test_a_context_extension_under_either_name_is_refused():
    """transformers reads `type` before `rope_type`."""
    for rope in ({"type": "yarn", "rope_type": "default"}, {"type": "mrope", "rope_type": "yarn"}):
        with pytest.raises(ValueError, match="rope type 'yarn' is not supported"):
            Qwen2VLConfig.from_dict({**PRESETS["tiny"].to_dict(), "rope_scaling": {**rope, "mrope_section": [4, 6, 6]}})


def test_two_bases_of_the_rotary_positions_are_both_named():
    values = PRESETS["tiny"].to_dict()
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    with pytest.raises(ValueError, match="rope_theta is 500000.0 inside the rope settings and 1000000.0 outside"):
        Qwen2VLConfig.from_dict({**values, "rope_parameters": {**rope, "rope_theta": 500000.0}})
    assert Qwen2VLConfig.from_dict({**values, "rope_parameters": {**rope, "rope_theta": 1e6}}) == PRESETS["tiny"]


@pytest.mark.parametrize(("inner", "told"), [
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 in text_config and 1e-06 outside it; correct one"),
    ({"num_attention_heads": 24}, "num_attention_heads is 24 in text_config and 12 outside it"),
    ({"rope_theta": 1e4}, "rope_theta is 10000.0 in text_config and 1000000.0 outside it"),
    ({"rope_parameters": {"mrope_section": [20, 20, 24]}}, r"mrope_section is \(20, 20, 24\) in text_config")])
def test_two_values_of_one_size_are_both_named(inner, told):
    with pytest.raises(ValueError, match=told):
        Qwen2VLConfig.from_dict({**HUB_2B, "text_config": inner})
    same = {**HUB_2B, "vocab_size": 151900, "text_config": {"vocab_size": 151936, "hidden_size": 1536}}
    assert Qwen2VLConfig.from_dict(same) == PRESETS["2b"]                       # the embedding tells which is right
