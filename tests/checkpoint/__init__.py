"""Tests of files: safetensors read by slices, torch.distributed.checkpoint saved and loaded split."""
