"""The verbs of the command line, a file for each noun; `cli` puts them together."""
