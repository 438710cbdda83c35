"""Fit a network on the stores: batches, augmentation on the device, schedule, checkpoints, several processes."""
