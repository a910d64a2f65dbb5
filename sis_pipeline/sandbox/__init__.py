"""SIS servers for demos, tests and plugin authors: each vendor's API over real HTTP from one deterministic world. Nothing in the product imports this package except the command line."""
