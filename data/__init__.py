"""Examples: the record, its files, its sources, the order of training."""
from data.example import Example
from data.files import load_examples

__all__ = ["Example", "load_examples"]
