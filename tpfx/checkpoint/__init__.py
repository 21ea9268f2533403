"""Weights in files: safetensors and GGUF read slice by slice, and what torch.distributed.checkpoint asks for."""
