"""Weights in files, safetensors and GGUF, read slice by slice; what torch.distributed.checkpoint asks for."""
