"""`python -m data.convert`: other programs' data to an examples file (data/builders/convert.py)."""
import signal
import sys

from data.builders.convert import main

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")       # a terminal may lack the letters of a path
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)           # `| head` ends it without a message
    main()
