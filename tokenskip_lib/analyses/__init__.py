"""Questions beyond the main experiment: recovery, adaptive ratios, timing, the explorer."""
