"""Tables of rows, which is all that readers are told: a table's name, a row's key, its fields as JSON."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, object]
Table = Mapping[str, Row]
Tables = Mapping[str, Table]
