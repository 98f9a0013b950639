"""The algorithm: prefill, denoising steps, commit, and the sampler of each step."""
