"""What the page's view of the pipeline lives on: the scheduler's state as rows, and the differences between two looks.

It reads the scheduler's view and hears its events, and changes nothing. Start to read at ``feed.py``.
"""
