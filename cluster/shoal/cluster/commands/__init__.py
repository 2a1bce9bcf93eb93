"""What each `shoal` command does. Modules here are imported when their command runs, not before."""
