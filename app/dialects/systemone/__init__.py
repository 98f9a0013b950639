"""Decisions in the System One format: `POST /v1/systemone`."""
