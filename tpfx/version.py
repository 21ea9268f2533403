"""The version of tpfx."""

__version__ = "0.1.0.dev0"
