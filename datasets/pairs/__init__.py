"""Records of the data sets of images with captions."""
