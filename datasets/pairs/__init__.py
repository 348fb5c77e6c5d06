"""Records, as the data sets of images with captions share them."""
