"""Learning from the dense model: losses, and the teacher that gives their targets."""
