"""Photographs of birds with captions, from the user's files."""
