"""The small files of a model directory, and the messages about directories that are no models."""

import json
import os

import pytest

from models import load_model, load_processor
from models.files import read_json
from models.processor import save_processor

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4417971200\n"


@pytest.fixture
def directory(tmp_path, make_model, processor):
    from models import save_model
    save_model(make_model(), tmp_path / "model")
    save_processor(processor, tmp_path / "model")
    return tmp_path / "model"


def message(function, *arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        function(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                  "tokenizer_config.json", "preprocessor_config.json"])
def test_git_lfs_pointers_and_empty_files_are_named(directory, name):
    (directory / name).write_text(POINTER)
    load = load_processor if name in ("tokenizer_config.json", "preprocessor_config.json") else load_model
    assert message(load, directory) == (
        f"{directory / name} is a Git LFS pointer, not the file itself; install git-lfs and run `git lfs pull` in "
        f"{directory}, or download the model again with `hf download`")
    (directory / name).write_text("")
    assert message(load, directory) == f"{directory / name} is empty; copy it again"


def test_pointers_in_vocab_and_merges_are_named(directory, processor):
    processor.tokenizer.model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        before = (directory / name).read_text()
        (directory / name).write_text(POINTER)
        assert f"{directory / name} is a Git LFS pointer" in message(load_processor, directory)
        (directory / name).write_text(before)
    load_processor(directory)


@pytest.mark.parametrize(("name", "told"), [
    ("Qwen/Qwen2-VL-2B-Instruct", "`hf download Qwen/Qwen2-VL-2B-Instruct --local-dir Qwen2-VL-2B-Instruct`, then give "
     "the directory Qwen2-VL-2B-Instruct"),
    ("https://huggingface.co/Qwen/Qwen2-VL-2B", "`hf download Qwen/Qwen2-VL-2B --local-dir Qwen2-VL-2B`"),
    ("huggingface.co/Qwen/Qwen2-VL-2B", "`hf download Qwen/Qwen2-VL-2B --local-dir Qwen2-VL-2B`"),
    ("/none/of/these", "/none/of/these does not exist"), ("~/model", "the shell did not expand ~"),
    ("../none", "../none does not exist"),
])
def test_paths_that_do_not_exist(name, told):
    for load in (load_model, load_processor):
        assert told in message(load, name)


def test_files_and_folders_around_a_model(directory, tmp_path):
    assert message(load_model, directory / "config.json") == (
        f"{directory / 'config.json'} is a file; give the directory that holds it")
    assert message(load_model, tmp_path) == f"{tmp_path} is not a model, but holds one; give {directory}"
    cache = tmp_path / "models--Qwen--Qwen2-VL-2B"
    os.renames(directory, cache / "snapshots/0123abcd")
    for load in (load_model, load_processor):
        assert message(load, cache) == f"{cache} is not a model, but holds one; give {cache / 'snapshots/0123abcd'}"
    load_model(cache / "snapshots/0123abcd")
    (tmp_path / "empty").mkdir()
    assert "config.json does not exist; a Qwen2-VL checkpoint" in message(load_model, tmp_path / "empty")


def test_adapter_folders_are_named(directory, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"}')
    told = f"{adapter} holds a PEFT adapter of 'Qwen/Qwen2-VL-2B-Instruct', not a model. Give both: --model 'Qwen/Q"
    assert message(load_model, adapter).startswith(told) and message(load_processor, adapter).startswith(told)
    (directory / "adapter_config.json").write_text("{}")            # beside whole weights: which of them is meant?
    assert "remove adapter_config.json to use them" in message(load_model, directory)
    (directory / "adapter_config.json").unlink()
    load_model(directory)


def test_directories_without_weights(directory):
    os.replace(directory / "model.safetensors", directory / "pytorch_model.bin")
    told = message(load_model, directory)
    assert "pickled .bin weights are not read ('pytorch_model.bin'). Convert them with transformers" in told
    os.replace(directory / "pytorch_model.bin", directory / "model-00001-of-00001.safetensors")
    told = message(load_model, directory)
    assert "'model-00001-of-00001.safetensors' cannot be read without model.safetensors.index.json: copy it" in told
    os.replace(directory / "model-00001-of-00001.safetensors", directory / "model.safetensors")     # the remedy
    load_model(directory)
    (directory / "model.safetensors").unlink()
    assert "copy or download the weights, too" in message(load_model, directory)


def test_untrusted_names_are_escaped(directory):
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "\x1b[2J" * 999}))
    told = message(load_model, directory)
    assert "\x1b" not in told and len(told) < 1500


def test_a_file_that_is_no_part_of_a_model(tmp_path):
    (tmp_path / "data.json").write_text("[]")
    assert message(load_model, tmp_path / "data.json") == (
        f"{tmp_path / 'data.json'} is a file; give a directory with config.json, tokenizer and weights")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{\"a\": 1}")
    assert read_json(tmp_path / "a.json") == {"a": 1}
