"""Greedy decoding: CUDA, CPU, or a server."""
