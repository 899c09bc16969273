"""The public service: pipelines through the stages, one answer for each call."""
