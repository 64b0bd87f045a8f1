"""Re-exports reading and writing of policy directories under their earlier path."""
from grpo.engine.checkpoint import load_policy, save_policy

__all__ = ["load_policy", "save_policy"]
