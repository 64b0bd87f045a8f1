"""The chat template: its marks, where it is written, and that others are told."""

import hashlib
import json

import pytest

from models import load_processor
from models.processor import save_processor
from models.template import CHAT_TEMPLATE, is_instruct_template

PARTS = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "video": "<|vision_start|><|video_pad|><|vision_end|>"}


def test_the_template_is_written_where_others_look(processor, tmp_path):
    save_processor(processor, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    for name in ("chat_template.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text())["chat_template"] == CHAT_TEMPLATE
    for mark in (*PARTS.values(), "'image_url' in part", "'video' in part", "add_vision_id"):
        assert mark in CHAT_TEMPLATE


def test_only_known_templates_are_accepted():
    # A digest of the text as benchmarks/compat.py renders it: who changes the template must compare the texts again.
    digest = "5b6180bdd081d8001b73018d9241e621bb510b423f62e7ad15376b6f34d1af44"
    assert hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest() == digest
    assert is_instruct_template(CHAT_TEMPLATE) and is_instruct_template(CHAT_TEMPLATE.replace("\n", "\r\n") + "\n")
    # Each has all marks of the Instruct template, but writes another text.
    for old, new in (("~ '\\n' -", "~ ' ' -"), ("loop.first and ", "false and "), ("<|im_end|>\\n' -}}\n{%- endfor",
                     "<|im_end|>' -}}\n{%- endfor"), ("'user'", "")):
        other = CHAT_TEMPLATE.replace(old, new) if old != "'user'" else CHAT_TEMPLATE + "{{ 'KEEP' }}"
        assert other != CHAT_TEMPLATE and not is_instruct_template(other)
    assert not is_instruct_template("{% for part in messages %}<|vision_start|><|image_pad|><|vision_end|>{% endfor %}")
    assert not is_instruct_template(7)


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json",
                                  "processor_config.json"])
def test_another_template_in_any_place_is_told(processor, tmp_path, recwarn, name):
    save_processor(processor, tmp_path)
    load_processor(tmp_path)
    assert not recwarn
    path = tmp_path / name
    other = CHAT_TEMPLATE + "{{ 'KEEP' }}"
    before = json.loads(path.read_text()) if name == "tokenizer_config.json" else {}
    path.write_text(other if name.endswith("jinja") else json.dumps(before | {"chat_template": other}))
    with pytest.warns(UserWarning, match=rf"is not that of Qwen2-VL-Instruct, which is used here \({name} differs\)"):
        load_processor(tmp_path)
