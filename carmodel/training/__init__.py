"""Fit a network on the stores: batches, device augmentation, optimizer, schedule, checkpoints, distributed training."""
