"""Offline: a checkpoint becomes a model folder. Nothing that serves imports this but the skeleton, and how models are imported (lean.py).

    source (Hugging Face folder, GGUF file, hub id) ─▶ skeleton ─▶ one shard at a time ─▶ OUT/manifest.json

Law: the source is never written to, no more than about two shards are in RAM, and until the manifest is written the
folder is not a model.
"""
