"""Re-exports the sampler under its earlier path."""
from grpo.fast.sampler import Sampler, generate
from grpo.sampling import Rollout, uniform_table

__all__ = ["Rollout", "Sampler", "generate", "uniform_table"]
