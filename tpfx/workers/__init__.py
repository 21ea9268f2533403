"""Ranks that are processes of their own: the caller's process starts them, and they run programs for it.

The caller holds the model, as with rank threads. All memory of the other ranks is shared, so that he sees
their shards and computes with them himself; what is handed over is `run program p with these arguments`.
"""
