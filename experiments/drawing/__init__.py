"""Figures and the page of results."""

import logging

# Silences a long warning if the home folder cannot be written.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
