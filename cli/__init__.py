"""The one command ``disagfusion``: finds the package of what it is asked to do, and imports no other."""
