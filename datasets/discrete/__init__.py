"""Modalities of few bits, whose joint distribution is a known table."""
