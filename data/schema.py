"""`python -m data.schema FILE` prints a datasheet. Re-exports the record and the reader of its files."""
import signal
import sys

from data.datasheet import main
from data.example import Example, prompt_text, target_text
from data.fields import parse_navigation
from data.files import load_examples, write_examples

__all__ = ["Example", "load_examples", "parse_navigation", "prompt_text", "target_text",
           "write_examples"]

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")       # a terminal may lack the letters of a path
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)           # `| head` ends it without a traceback
    main()
