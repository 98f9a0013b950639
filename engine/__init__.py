"""The worker process: owns the GPU, the model and the scheduler. Knows no HTTP and no text."""
