"""Re-exports how an example becomes a prompt and a target under its earlier path."""
from grpo.engine.prompts import PromptSettings, encode_example, encode_target

__all__ = ["PromptSettings", "encode_example", "encode_target"]
