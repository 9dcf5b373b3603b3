"""Published questions about images, brought by the user: ``questions.jsonl`` with images beside it, or Parquet files.

One line of ``questions.jsonl`` is one question: ``question``, ``answer`` and ``image`` (a path below the folder), and,
where the benchmark has them, ``category``, ``options`` (a list), ``id`` and ``question_id``. Parquet files, as the hub
has them, have columns of these names and may hold the images themselves (``image`` or ``image_1``); they are brought
into the form above once, below ``unpacked/``, equal images as one file.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reca.evaluation import prompt_sources as sources
from reca.evaluation.samples import Row
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, write_text

TABLE = "questions.jsonl"
IMAGE_COLUMNS = ("image", "image_1")
OPTIONAL = ("category", "options", "id", "question_id")
SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def folder_of(root: Path, name: str) -> Path:
    """The folder that holds ``questions.jsonl`` of a benchmark and its images.

    Raises:
        UserError: There are no questions; or a Parquet file does not hold such questions.
    """
    folder = sources.folder_of(root, name)
    if (folder / TABLE).is_file():
        return folder
    unpacked = folder / "unpacked"
    if (unpacked / TABLE).is_file():
        return unpacked
    files = [path for path in sources.data_files(folder) if path.suffix == ".parquet"]
    if not files:
        raise UserError(
            f"the questions of {name} are missing, and nothing fetches them: put {TABLE} (docs/benchmarks.md says what "
            f"stands in it) and the images into {folder}, or the Parquet files of its data set on the hub"
        )
    with atomic_folder(unpacked) as temporary:
        rows = [_unpack(row, folder, temporary) for path in files for row in _rows_of(path)]
        write_text(temporary / TABLE, "".join(json.dumps(row) + "\n" for row in rows))
    return unpacked


def read_questions(folder: Path) -> list[Row]:
    """All questions, in order; ``image`` is a file below the folder.

    Raises:
        UserError: A line is damaged, or its image is not there.
    """
    rows, there = [], set[str]()
    lines = (folder / TABLE).read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row |= {"question": str(row["question"]), "image": str(row["image"]), "answer": row["answer"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / TABLE}, line {number} is no question ({error!r})") from None
        if row["image"] not in there and not (folder / row["image"]).is_file():
            raise UserError(f"{folder / TABLE}, line {number}: there is no image {folder / row['image']}")
        there.add(row["image"])
        rows.append(row)
    return rows


def as_list(value: Any) -> list[str]:
    """A list of texts, or the Python text of one, as MMMU's files have it; another value alone is a list of one."""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("["):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return [text]
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The questions of a Parquet file, the first of their images as ``image``."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        image = next((name for name in IMAGE_COLUMNS if name in names), IMAGE_COLUMNS[0])
        columns = ["question", "answer", image]
        if missing := set(columns) - set(names):
            raise UserError(f"{path} holds no questions about images: it has no {', '.join(sorted(missing))}")
        columns += [name for name in OPTIONAL if name in names]
        for batch in file.iter_batches(16, columns=columns):
            for row in batch.to_pylist():
                yield {"image" if name == image else name: value for name, value in row.items()}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} holds no questions about images ({error})") from None


def _unpack(row: dict[str, Any], folder: Path, target: Path) -> Row:
    """A question whose image is a file below ``target``."""
    stored = row["image"]
    found = stored if isinstance(stored, dict) else {"bytes": stored} if isinstance(stored, bytes) else {"path": stored}
    data = found.get("bytes")
    if data is None:
        path = folder / str(found.get("path"))
        if not path.is_file():
            raise UserError(f"a question's image, {path}, is not there")
        data = path.read_bytes()
    name = f"images/{hashlib.sha256(data).hexdigest()[:32]}"
    if not (target / name).exists():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)
    return {**row, "image": name}
