"""What computes: the diffusers engine and the emulated one, behind the seam in ``base``."""
