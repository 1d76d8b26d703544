"""Checkpoints of Hugging Face: a directory with config.json and safetensors to a verified version.

Nothing is downloaded, and no code and no pickle of a checkpoint is run. Start with `publish_checkpoint`.
"""
