"""The algorithm: prefill, denoising steps, commit, and the sampler that decides in each step."""
