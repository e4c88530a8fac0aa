"""The commands, as functions: one file per command."""
