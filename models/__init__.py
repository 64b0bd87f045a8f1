"""Qwen2-VL written out in plain PyTorch: configuration, model, processor and checkpoint files."""

from models.config import Qwen2VLConfig
from models.processor import load_processor
from models.weights import load_model, save_model

__all__ = ["Qwen2VLConfig", "load_model", "load_processor", "save_model"]
