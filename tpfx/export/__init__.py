"""Plans for other tools: transformers' `tp_plan` and torch's `parallelize_module`."""
