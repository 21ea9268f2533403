"""What holds on a GPU: `python -m benchmarks.gpu`.

Two ranks share one GPU, which tells whether tpfx is right there and what it costs, not what a second GPU
gains; on several GPUs each has a rank of its own.
"""
