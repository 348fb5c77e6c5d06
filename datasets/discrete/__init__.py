"""Modalities of few bits whose joint distribution is a table, and known exactly."""
