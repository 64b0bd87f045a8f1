"""Rules that judge a driving plan: its actions, the AlphaDrive rewards, the evaluation metrics."""

from rewards.actions import Decision, find_actions, parse_plan
from rewards.planning import planning_rewards

__all__ = ["Decision", "find_actions", "parse_plan", "planning_rewards"]
