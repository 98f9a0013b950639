"""OpenAI's raw completions: `POST /v1/completions`."""
