"""How the bundled model was made: a small Z-Image trained from zero on drawn scenes. See README.md."""
