"""The passes, each one verb: see `tpfx.pipeline` for their order."""


