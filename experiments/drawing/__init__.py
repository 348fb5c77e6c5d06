"""Figures and the page of results."""
