"""GRPO and SFT for Qwen2-VL: losses, rollouts and the training loop."""
