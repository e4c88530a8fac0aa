"""How a table is written, by the suffix of its file: the encoding of a part, and how parts are joined without holding them all."""

import csv
import io
import json
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from unveil.plain_text import csv_cell, printable
from unveil.predictions import Columns

Parts = Sequence[Path]
"""The files of the encoded parts that have rows, in order."""
ROW_GROUP = 2**26
"""Bytes of features, or of other values, in a row group of a Parquet file, at most one part more."""
MIN_ROWS = 2**16
"""A row group holds at least so many rows, unless they have more bytes than that."""


def save_arrays(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays as an .npz file."""
    np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs confuse the arrays with `allow_pickle`


class TableFormat(ABC):
    """A format of tables."""

    @abstractmethod
    def encode(self, columns: Columns) -> bytes:
        """The bytes of a part with at least one row."""

    @abstractmethod
    def join(self, path: Path, names: Sequence[str], rows: int, parts: Parts) -> None:
        """Writes a file from the encoded parts.

        Args:
            path: The file.
            names: The columns.
            rows: The number of all rows, at least one.
            parts: See `Parts`.
        """


def plain_cells(column: NDArray[Any]) -> list[Any]:
    """A column as plain values: text as it is printed, floats with six significant digits, which is what float32 can promise."""
    if column.dtype.kind == "f":
        return [float(f"{value:.6g}") for value in column.tolist()]
    return [printable(value) for value in column.tolist()] if column.dtype.kind == "U" else column.tolist()


class TextTable(TableFormat):
    """Lines of text; a part is what the file will contain."""

    def header(self, names: Sequence[str]) -> str:
        """What comes before the first row."""
        return ""

    def join(self, path: Path, names: Sequence[str], rows: int, parts: Parts) -> None:
        with path.open("wb") as file:
            file.write(self.header(names).encode())
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 2**20)


class CSVTable(TextTable):
    """Comma-separated values in UTF-8."""

    def header(self, names: Sequence[str]) -> str:
        return csv_lines([[csv_cell(name) for name in names]])

    def encode(self, columns: Columns) -> bytes:
        cells = [
            [csv_cell(value) for value in column.tolist()]
            if column.dtype.kind == "U"
            else [f"{value:.6g}" for value in column.tolist()]
            if column.dtype.kind == "f"
            else column.tolist()
            for column in columns.values()
        ]
        return csv_lines(zip(*cells, strict=True)).encode()


class JSONLinesTable(TextTable):
    """One JSON object per line."""

    def encode(self, columns: Columns) -> bytes:
        rows = zip(*map(plain_cells, columns.values()), strict=True)
        return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows).encode()


class ArrayTable(TableFormat):
    """Arrays; a part is an .npz file in memory."""

    def encode(self, columns: Columns) -> bytes:
        file = io.BytesIO()
        save_arrays(file, columns)
        return file.getvalue()


class NPZTable(ArrayTable):
    """NumPy's .npz, as `numpy.savez` writes it, but each array is written part by part."""

    def join(self, path: Path, names: Sequence[str], rows: int, parts: Parts) -> None:
        kinds = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]()
        for part in parts:
            for name, (kind, shape) in array_headers(part).items():
                kinds[name] = (np.promote_types(kinds[name][0], kind) if name in kinds else kind), shape  # the longest text
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, (kind, shape) in kinds.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    for part in parts:
                        with np.load(part) as columns:
                            file.write(columns[name].astype(kind, copy=False).tobytes())


class ParquetTable(ArrayTable):
    """Parquet, whose row groups are made of whole parts."""

    def join(self, path: Path, names: Sequence[str], rows: int, parts: Parts) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        waiting, writer = list[Any](), None
        for part in parts:
            with np.load(part) as columns:
                waiting.append(arrow_table({name: columns[name] for name in names}))
            count, size = (sum(each) for each in zip(*((table.num_rows, table.nbytes) for table in waiting), strict=True))
            if writer is None:
                writer = parquet.ParquetWriter(path, waiting[0].schema)
            if size >= ROW_GROUP or count >= MIN_ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=count)
                waiting = []
        assert writer is not None
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=sum(table.num_rows for table in waiting))
        writer.close()


def csv_lines(rows: Any) -> str:
    """Rows of cells as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def array_headers(part: Path) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The type of each array of an encoded part, and the shape of its rows. The arrays themselves are not read."""
    found = {}
    with zipfile.ZipFile(part) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                np.lib.format.read_magic(file)
                shape, _, kind = np.lib.format.read_array_header_1_0(file)
                found[name.removesuffix(".npy")] = kind, shape[1:]
    return found


def arrow_table(columns: Columns) -> Any:
    """Columns as a table of pyarrow. Rows of several values become lists of a fixed size."""
    import pyarrow as pa

    def array(column: NDArray[Any]) -> Any:
        if column.dtype.kind == "U":
            return pa.array(map(printable, column.tolist()), pa.string())
        found = pa.array(column.reshape(-1))
        for length in column.shape[:0:-1]:
            found = pa.FixedSizeListArray.from_arrays(found, length)
        return found

    return pa.table({name: array(column) for name, column in columns.items()})


FORMATS: dict[str, type[TableFormat]] = {".csv": CSVTable, ".jsonl": JSONLinesTable, ".npz": NPZTable, ".parquet": ParquetTable}


def format_of(path: Path) -> TableFormat:
    """The format of a file, by its suffix."""
    return FORMATS[path.suffix]()
