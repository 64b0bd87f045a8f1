"""The chat template of Qwen2-VL-Instruct as text for other programs, and the check that a directory has no other one.

`Processor` writes the ids of a conversation itself; `CHAT_TEMPLATE` renders the same text in transformers and vLLM.
A template of a directory is compared, never executed.
"""

import hashlib
from pathlib import Path
from typing import Any

from models.files import MAX_JSON_BYTES, read_json

SYSTEM_PROMPT = "You are a helpful assistant."

# Renders what the published template renders, parts of type image_url and video and `add_vision_id` included.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\\n""" + SYSTEM_PROMPT + """<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.images = seen.images + 1 -%}
        {{- 'Picture ' ~ seen.images ~ ': ' if add_vision_id else '' -}}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part['type'] == 'video' or 'video' in part -%}
        {%- set seen.videos = seen.videos + 1 -%}
        {{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id else '' -}}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif 'text' in part -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""

# SHA-256 of other templates that render the same text of roles, text and image parts, without outer whitespace.
SAME_TEXT = (
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",     # published with the Instruct models
    "47fbbec351dbdade73ce09e37e624ba2a121a80bdbcd256a34e0b39757292978",     # written by earlier versions of this file
)


def is_instruct_template(template: object) -> bool:
    """Whether a chat template is known to render the text of the Instruct models'."""
    if not isinstance(template, str):
        return False
    text = template.replace("\r\n", "\n").strip()
    return text == CHAT_TEMPLATE or hashlib.sha256(text.encode(errors="replace")).hexdigest() in SAME_TEXT


def foreign_templates(directory: Path) -> list[str]:
    """The files of a directory that hold another chat template. Raises: ValueError naming a broken file."""
    templates: dict[str, Any] = {}
    if (directory / "chat_template.jinja").is_file():
        with open(directory / "chat_template.jinja", encoding="utf-8", errors="replace") as file:
            templates["chat_template.jinja"] = file.read(MAX_JSON_BYTES)
    for name in ("chat_template.json", "tokenizer_config.json", "processor_config.json"):
        if (directory / name).is_file():
            templates[name] = read_json(directory / name).get("chat_template")
    return [name for name, template in templates.items() if template is not None and not is_instruct_template(template)]
