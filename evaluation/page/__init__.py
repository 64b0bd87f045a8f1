"""report.html: one self-contained page about some runs. `report.py` is the command."""
