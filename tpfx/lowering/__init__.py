"""From a planned graph to one rank's: the nodes that are written, and what compiles them for a device."""
