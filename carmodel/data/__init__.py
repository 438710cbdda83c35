"""Turn photos into HDF5 stores: read data sets, draw the sample, split, write and read stores, augment."""
