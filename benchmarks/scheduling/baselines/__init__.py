"""What the scheduler is compared with, each in terms of the real core's seams."""
