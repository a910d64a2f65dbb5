"""The `sis` command, thin: it parses, calls and prints. What it prints is computed elsewhere."""
