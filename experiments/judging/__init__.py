"""The claims of the papers, judged on finished runs."""
