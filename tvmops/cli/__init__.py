"""The command line, one file a command. Only a command's `run` imports what is slow to import."""
