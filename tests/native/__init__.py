"""The native executor: programs by themselves, and how the extension is built."""
