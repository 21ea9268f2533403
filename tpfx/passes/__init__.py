"""The passes, each one verb, and `pipeline`, which is their order."""
