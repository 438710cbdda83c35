"""Photos to stores: read data sets, draw the sample, split, write and read HDF5, augment."""
