"""Photos in, stores out: reading, splitting, drawing the sample, writing HDF5, augmentation."""
