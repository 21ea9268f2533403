"""Tests in the rooms of tpfx, `tests/<room>/test_<module>.py`; whole models are in `end_to_end`."""
