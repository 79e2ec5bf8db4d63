"""One rank's life: the loop, the engines, objectives, optimizers, precision. No Ray."""
