"""Examples: what they are, where they come from, how they are read and ordered."""
from data.schema import Example, load_examples

__all__ = ["Example", "load_examples"]
