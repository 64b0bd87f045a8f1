"""`python -m data.nuscenes`: nuScenes to an examples file (data/builders/nuscenes.py)."""
from data.builders.nuscenes import main

if __name__ == "__main__":
    main()
