"""Weights in files: safetensors read slice by slice, and what torch.distributed.checkpoint asks for."""
