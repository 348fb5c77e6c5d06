"""Figures and the page of results."""

import logging

# Where nothing can be written at home, it says at length that it uses another folder.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
