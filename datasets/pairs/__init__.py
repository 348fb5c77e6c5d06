"""What the data sets of images with captions share: their records and their error."""
