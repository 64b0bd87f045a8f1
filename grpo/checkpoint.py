"""Re-exports reading and writing of policy directories from grpo/engine/checkpoint.py under their earlier path."""
from grpo.engine.checkpoint import load_policy, save_policy

__all__ = ["load_policy", "save_policy"]
