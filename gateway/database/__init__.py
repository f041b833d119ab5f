"""What outlives the process and is looked up, counted or changed by several: keys, and in time what belongs to them.

One ``Database`` (``database.py``), SQLite in the state folder or PostgreSQL. Each concept has one module here, which
holds its table and a class whose methods speak of that concept: **SQL stays inside this room**, and the HTTP side sees
plain dataclasses and ``DatabaseError``.

A new concept, ``things``:

1. ``things.py``: a ``Table`` on ``tables.metadata``; ``class Things`` that is given the ``Database``;
   ``async with database.session() as connection`` reads, ``async with database.begin() as connection`` writes, and
   has committed once its block is left without an exception. A method that writes is a ``@whole`` one.
2. ``migrations/versions/NNNN_things.py``: ``revision = "NNNN"``, ``down_revision`` the latest one before it. One line
   of descent: whoever is merged second takes the next number. Released revisions are never changed.
3. ``tests/database`` compares the tables with what the migrations make, so neither is forgotten.

Times are Unix times in ``Double`` columns. What both kinds of database know is used, and nothing else:
``tables.insert`` for inserts with ``on_conflict_do_nothing`` or ``on_conflict_do_update``,
``with_for_update(skip_locked=True)`` where several gateways take rows of one queue (SQLite, which has one writer at a
time, ignores it).
"""
