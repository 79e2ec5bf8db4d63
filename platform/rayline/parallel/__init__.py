"""Device mesh and the axes of parallelism, applied to a module."""
