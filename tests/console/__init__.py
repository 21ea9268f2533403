"""What tpfx says beside its answers, and how a process takes it."""
