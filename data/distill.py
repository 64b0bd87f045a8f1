"""`python -m data.distill`: reasons from a teacher model (data/builders/distill.py)."""
from data.builders.distill import main

if __name__ == "__main__":
    main()
