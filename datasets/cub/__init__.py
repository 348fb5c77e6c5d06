"""Photographs of birds with captions, from the files that the user has."""
