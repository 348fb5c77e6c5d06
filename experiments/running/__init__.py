"""One run: its data, working directory, signals and evaluation."""
