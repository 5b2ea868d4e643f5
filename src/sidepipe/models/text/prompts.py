"""Lists of prompts, those of the literature included, and the ground-truth images at hand.

Formats of the literature: the 500 prompts of Webster (2023) as in Wen et al. (2024; JSON lines with
caption, index and url), the tables of Hintersdorf et al. (2024; Caption, URL and Index, separated
by semicolons), MemBench (Hong et al., 2024; a list of urls per prompt) and plain lists.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sidepipe.base.image_files import list_images, printable
from sidepipe.base.records import SUFFIXES, Record, read_records, text_in, text_of
from sidepipe.base.settings import require

if TYPE_CHECKING:
    import pandas as pd

CAPTIONS, URLS, IDS = ("caption", "prompt", "text"), ("url", "urls"), ("id", "index", "key", "")
NO_URL = ("", "nan", "none", "null")
TRUTHS = {"true": True, "1": True, "false": False, "0": False, "": None, "none": None}


@dataclass(frozen=True)
class Prompt:
    """A prompt and the other columns of its row.

    url: where the training images were, with spaces between several; image: the path of one;
    memorized: the value in the file, None where there is none.
    """

    id: str
    caption: str
    url: str = ""
    image: str = ""
    memorized: bool | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a .csv, .jsonl or .txt file, in its order.

    .txt has a prompt per line, whose number is the id. The others have a column caption (or prompt,
    or text) and optionally id (or index, or key, or a column without a name; default: the row's
    number), url (or urls), image and memorized. Raises FileNotFoundError without the file, and
    ValueError for an empty prompt, a duplicate id, another suffix, or a row that cannot be read.
    """
    suffix, known = path.suffix.lower(), (*SUFFIXES, ".txt")
    require(suffix in known, f"the suffix of {path}", f"one of {', '.join(known)}", suffix)
    rows = _lines(path) if suffix == ".txt" else read_records(path)
    prompts = [_prompt(where, row, number) for number, (where, row) in enumerate(rows)]
    ids: dict[str, str] = {}
    for (where, _), prompt in zip(rows, prompts, strict=True):
        if prompt.id in ids:
            raise ValueError(
                f"{where} repeats the id {prompt.id!r} of {ids[prompt.id]}; remedy: change one"
            )
        ids[prompt.id] = where
    return prompts


def present_images(prompts: Sequence[Prompt], folder: Path) -> pd.DataFrame:
    """Each prompt's images below `folder`, and how many prompts share one of its urls.

    Columns: id, caption, url, files (paths within the folder, sorted), found_by ("image", "id",
    "url" or "" where there is none) and prompts_of_url. The first that exists is taken: the
    prompt's own image; files named by its id, or in a folder named by it (leading zeros do not
    count); files named as the end of a url, where no other prompt has a url with this end.
    """
    import pandas as pd

    require(folder.is_dir(), "the folder of ground-truth images", "a folder", str(folder))
    by_image, by_name, by_id = _files(folder)
    urls = Counter(url for prompt in prompts for url in set(prompt.url.split()))
    ends = Counter(_end(url) for url in urls)
    rows = []
    for prompt in prompts:
        own = prompt.url.split()
        clear = [name for url in own if ends[name := _end(url)] == 1]
        found = {
            "image": by_image.get(normpath(prompt.image), []) if prompt.image else [],
            "id": by_id.get(_unpadded(prompt.id), []),
            "url": sorted(file for name in clear for file in by_name.get(name, [])),
        }
        by = next((by for by, files in found.items() if files), "")
        shared = max((urls[url] for url in own), default=0)
        rows.append([prompt.id, prompt.caption, prompt.url, found.get(by, []), by, shared])
    columns = ["id", "caption", "url", "files", "found_by", "prompts_of_url"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def count_images(present: pd.DataFrame) -> dict[str, int]:
    """The numbers of prompts, prompts with an image, prompts that share a url, and urls."""
    return {
        "prompts": len(present),
        "with_image": sum(by != "" for by in present["found_by"]),
        "sharing_a_url": sum(count > 1 for count in present["prompts_of_url"]),
        "urls": len({url for urls in present["url"] for url in urls.split()}),
    }


def _lines(path: Path) -> list[tuple[str, Record]]:
    lines = text_in(path).rstrip().split("\n")
    return [(f"{path} line {n}", {"caption": line, "id": n}) for n, line in enumerate(lines, 1)]


def _prompt(where: str, row: Record, number: int) -> Prompt:
    caption = next((name for name in CAPTIONS if name in row), CAPTIONS[0])
    memorized = str(row.get("memorized", "")).strip().lower()
    if memorized not in TRUTHS:
        raise ValueError(f"{where}: memorized must be true, false or empty, got {memorized!r}")
    name = next((str(row[name]) for name in IDS if row.get(name) not in (None, "")), str(number))
    return Prompt(
        id=name.strip(),
        caption=text_of(where, row, caption),
        url=_urls(where, next((row[name] for name in URLS if row.get(name)), "")),
        image=str(row.get("image") or ""),
        memorized=TRUTHS[memorized],
    )


def _urls(where: str, value: Any) -> str:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:  # MemBench writes lists as Python literals
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"{where}: urls must be a list or one url, got {value!r}") from None
    urls = [value] if isinstance(value, str) else list(value)
    urls = [url for url in urls if str(url).strip().lower() not in NO_URL]
    if wrong := [url for url in urls if "://" not in str(url)]:
        raise ValueError(
            f"{where}: a url must hold '://', got {wrong[0]!r}; remedy: quote a caption that holds "
            "the separator of the columns"
        )
    return " ".join(str(url).strip().replace(" ", "%20") for url in urls)


Files = dict[str, list[str]]


def _files(folder: Path) -> tuple[Files, Files, Files]:
    """Paths of images below `folder` by path, by file name, and by the possible id of a prompt."""
    by_path: Files = defaultdict(list)
    by_name: Files = defaultdict(list)
    by_id: Files = defaultdict(list)
    for name in list_images(folder)[0]:
        if printable(name) != name:
            raise ValueError(f"{folder}: the name of {printable(name)} must be UTF-8, rename it")
        path = PurePosixPath(name)
        for key in {name, normpath(folder / name)}:
            by_path[key].append(str(path))
        by_name[path.name.lower()].append(str(path))
        for key in {_unpadded(path.stem), _unpadded(path.parent.name)}:
            by_id[key].append(str(path))
    return by_path, by_name, by_id


def _end(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name.lower()


def _unpadded(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name
