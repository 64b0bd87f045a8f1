"""Examples: what they are, where they come from, how they are read and ordered."""
__all__ = ["Example", "load_examples"]


def __getattr__(name: str) -> object:
    """`from data import Example`, fetched when asked for: `python -m data.schema` warns of a module imported before."""
    if name not in __all__:
        raise AttributeError(f"module 'data' has no attribute {name!r}")
    from data import schema
    return getattr(schema, name)
