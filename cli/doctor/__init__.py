"""``disagfusion doctor``: what keeps this machine from serving, and what to do about it."""
