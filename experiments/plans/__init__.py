"""Plans of many runs, their cost, and the table of their results."""
