"""Models of full size on one GPU, with random weights: nothing is downloaded."""
