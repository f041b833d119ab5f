"""Serves stages of one model on one device. The only package that imports torch and diffusers."""
