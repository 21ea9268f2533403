"""What tpfx says beside its answers, and how a process takes it: progress, logs, Ctrl-C, streams, files.

Nothing here knows of torch, so that it is there before torch is.
"""
