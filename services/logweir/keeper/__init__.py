"""The role that keeps the stores in order: partitions, pruning, merging, sums."""
