"""Parts of `packforcing bench`: how fast a machine renders, and how close that is to its kernels' speed."""
