"""Rows in a CSV file, each on disk as soon as it is there."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SAME = ("device", "torch", "triton", "cuda", "sources")  # of rows that belong together


class Table:
    """The rows of a file that were measured with the same code, versions and GPU, and room for more.

    Args:
        file: is made; rows of others that it has stay.
        columns: of what is measured; the facts come after them.
        key: the columns that say what a row is of. There may be several rows of one key.
        facts: what all rows of this run have in common.
    """

    def __init__(self, file: Path, columns: Sequence[str], key: Sequence[str], facts: Mapping[str, str]):
        self.file, self.key, self.facts = file, tuple(key), facts
        self.columns = (*columns, *facts)
        old = _complete_rows(file)
        self.rows: list[dict[str, str]] = []
        self._keys: set[tuple[str, ...]] = set()
        for row in old:
            if all(row.get(name) == facts[name] for name in SAME):
                self._remember(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".new")
        temporary.write_text("".join(map(self._line, [dict(zip(self.columns, self.columns, strict=True)), *old])))
        temporary.replace(file)

    def has(self, row: Row) -> bool:
        """Whether there is a row of the same key."""
        return tuple(_text(row.get(name)) for name in self.key) in self._keys

    def add(self, *rows: Row) -> None:
        """Rows that belong together are written at once: all of them are there, or none."""
        texts = [{name: _text(value) for name, value in {**row, **self.facts}.items()} for row in rows]
        with self.file.open("a") as file:
            file.write("".join(map(self._line, texts)))
        for text in texts:
            self._remember(text)

    def _remember(self, row: Mapping[str, str]) -> None:
        self.rows.append({name: row.get(name, "") for name in self.columns})
        self._keys.add(tuple(row.get(name, "") for name in self.key))

    def _line(self, row: Mapping[str, str]) -> str:
        line = StringIO()
        csv.DictWriter(line, self.columns, extrasaction="ignore", lineterminator="\n").writerow(row)
        return line.getvalue()


def _complete_rows(file: Path) -> list[dict[str, str]]:
    """All but one that a killed run has left half written."""
    text = file.read_text() if file.exists() else ""
    return list(csv.DictReader(StringIO(text[: text.rfind("\n") + 1])))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
