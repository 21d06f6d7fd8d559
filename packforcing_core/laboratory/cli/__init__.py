"""The laboratory's subcommands of `packforcing`."""
