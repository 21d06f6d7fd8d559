"""How fast a machine renders, and how near that is to what it can do: the `packforcing bench` command's parts."""
