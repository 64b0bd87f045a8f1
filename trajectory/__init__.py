"""From a plan to a driven trajectory: a diffusion decoder, and reinforcement learning of its denoising chain."""
