"""Tables of lines, row by row: JSON lines, CSV as programs and spreadsheets write it, tab-separated, IAM's, MJSynth's.

    file -> (where it stands, {"file_name", "text", ...} or what is wrong with it) a row

Which files these are, and where their pictures lie, knows `image_text.py`.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

IAM = "lines.txt"
MJSYNTH = "annotation"


def plain_name(file: Path) -> str:
    """A file's name, its suffix in small letters."""
    return file.stem + file.suffix.lower()


def read_table(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | ValueError]]:
    """(where it stands, the row or what is wrong with it) for each row of a JSON-lines, CSV or tab-separated file."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "Save it as CSV UTF-8 in the spreadsheet." if file.suffix.lower() == ".csv" else "Convert it."
        raise ValueError(f"{file} must be UTF-8 text, got byte {error.start} that is not. {advice}") from error
    if file.suffix.lower() == ".csv":
        yield from _read_csv(file, content)
        return
    for number, line in enumerate(content.split("\n"), start=1):
        source = f"{file}, line {number}"
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        if plain_name(file) == IAM:
            if not line.startswith("#"):
                yield source, _iam_row(source, line)
        elif file.suffix.lower() == ".jsonl":
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield source, ValueError(f"{source}: wanted a JSON object, got {line[:60]!r} ({error}). Correct it.")
                continue
            if isinstance(row, dict):
                yield source, row
            else:
                told = f"{source}: wanted a JSON object, got a {type(row).__name__}. Write one object a line."
                yield source, ValueError(told)
        else:
            name, tab, text = line.partition("\t")  # the first tab only: texts may hold more
            if tab:
                yield source, {"file_name": name, "text": text}
            elif file.stem.split("_")[0] == MJSYNTH:
                yield source, _mjsynth_row(source, line)
            else:
                told = f"{source}: wanted `file<TAB>text`, got {line[:60]!r}. Put a tab between the two."
                yield source, ValueError(told)


def _read_csv(file: Path, content: str) -> Iterator[tuple[str, Mapping[str, Any] | ValueError]]:
    """The rows of a CSV file as programs and spreadsheets write it.

    Columns may stand in any order, parted by commas, semicolons (Excel in most of Europe) or tabs; columns without a name
    and rows without a value are passed over. A value after the last named column is most likely the rest of a text that
    holds an unquoted comma, so its row is bad.

    Raises:
        ValueError: if two columns have one name.
    """
    head = content.partition("\n")[0]
    separator = next((mark for mark in ",;\t" if "file_name" in map(str.strip, _fields(head, mark))), ",")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    names: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            source = f"{file}, line {first_line}"
            yield (
                source,
                ValueError(
                    f"{source}: wanted a row whose texts are quoted, with quotes in them doubled, got one that is not "
                    f"({error}). Correct the quotes."
                ),
            )
            continue
        if names is None:
            names = [name.strip() for name in fields]
            while names and not names[-1]:
                names.pop()
            if twice := sorted({name for name in names if name and names.count(name) > 1}):
                raise ValueError(f"{file} must name each column once, got `{twice[0]}` twice. Rename or remove one.")
        elif any(field.strip() for field in fields):
            source = f"{file}, line {reader.line_num}"
            if names and any(field.strip() for field in fields[len(names) :]):
                told = f"{source}: wanted at most {len(names)} values, got {len(fields)}. Quote texts with {separator!r} in them."
                yield source, ValueError(told)
            else:
                yield source, {name: field for name, field in zip(names, fields, strict=False) if name}


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _iam_row(source: str, line: str) -> dict[str, str] | ValueError:
    """`a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to` as a row; the last of nine fields may hold spaces."""
    fields = line.split(" ", 8)
    parts = fields[0].split("-")
    if len(fields) < 9 or len(parts) != 3:
        return ValueError(f"{source}: wanted nine fields as in IAM's lines.txt, got {line[:60]!r}. Correct the row.")
    form = "-".join(parts[:2])
    file_name = f"{parts[0]}/{form}/{fields[0]}.png"
    return {"file_name": file_name, "text": fields[8].replace("|", " "), "line": fields[0], "form": form}


def _mjsynth_row(source: str, line: str) -> dict[str, str] | ValueError:
    """`./2425/1/115_Lube_45484.jpg 45484` as a row: between two numbers the word, as it was drawn."""
    fields = line.split()
    parts = Path(fields[0]).stem.split("_")
    if len(fields) != 2 or len(parts) != 3 or fields[1] != parts[2]:
        told = f"wanted `folder/number_word_number.jpg number` as MJSynth has it, got {line[:60]!r}. Correct the row."
        return ValueError(f"{source}: {told}")
    return {"file_name": fields[0], "text": parts[1]}
