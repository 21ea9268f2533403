"""Devices and ranks at run time: meshes, rank threads, process groups, and the collectives between them.

Importing this room starts nothing: a runtime is made for a model.
"""
