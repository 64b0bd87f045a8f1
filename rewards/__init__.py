"""The actions of a driving plan, how they are read from a completion, and AlphaDrive's rewards."""

from rewards.actions import Decision, find_actions, parse_plan
from rewards.planning import planning_rewards

__all__ = ["Decision", "find_actions", "parse_plan", "planning_rewards"]
