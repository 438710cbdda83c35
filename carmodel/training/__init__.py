"""Fitting a network on the stores: batches, on-device augmentation, schedule, checkpoints."""
