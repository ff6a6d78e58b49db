"""Plain against ours, piece by piece and in all; bench/cpu.py and bench/gpu.py are the commands."""
