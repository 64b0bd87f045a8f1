"""Examples: what they are, where they come from, how they are read and ordered."""
from data.example import Example
from data.files import load_examples

__all__ = ["Example", "load_examples"]
