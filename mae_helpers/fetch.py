"""Downloads that can be interrupted: a file has its final name only when it is whole and has its checksum."""
from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from .config import InputError
from .packs import file_sum

TIMEOUT = (10, 30)          # seconds for connecting, and of silence before a connection counts as cut
TRIES = 5                   # each goes on where the one before was cut; one that brings nothing is the last
BLOCK = 1 << 16             # bytes


def download(url: str, path: Path, md5: str | None = None) -> None:
    """Fetch `url` into `path`; what an earlier try left in `path`.part is not fetched again.

    The file must have the sum `md5`, or, where the server announces one as the Hugging Face Hub does, that SHA-256.
    Raises `InputError` for an answer other than the file, a cut connection, another checksum and a full disk.
    """
    import requests
    from urllib3.exceptions import HTTPError

    host, part = urlsplit(url).netloc, path.with_name(f"{path.name}.part")
    for attempt in range(1, TRIES + 1):
        before = _size(part)
        try:
            announced = _get(requests, url, part)
            break
        except (requests.RequestException, HTTPError) as error:
            if attempt == TRIES or _size(part) == before:
                kept = f" after {_size(part):,} bytes of {path.name}, from where the next try goes on" if _size(part) else ""
                raise InputError(f"{host}: {_reason(error)}{kept}") from None
        except OSError as error:        # requests raises one without a number for certificates that it does not find
            why = f"{path.name} cannot be written ({error.strerror})" if error.strerror else f"{host}: {error}"
            raise InputError(why) from None
    algorithm, expected = ("md5", md5) if md5 else ("sha256", announced)
    if expected and file_sum(part, algorithm) != expected:
        part.unlink()
        raise InputError(f"{path.name} from {host} has another checksum than the original")
    os.replace(part, path)


def _get(requests, url: str, part: Path) -> str | None:
    """Append what is missing to `part`; the SHA-256 of the whole file, where the server announces it."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:         # nothing lies beyond what is there: it is not a part of this file
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the part does not fit the file")
        if not response.ok:
            raise InputError(f"{urlsplit(url).netloc} answered {response.status_code} ({response.reason})")
        have = have if response.status_code == 206 else 0           # a server may not know ranges and send everything
        total = have + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab" if have else "wb") as file, tqdm(
                total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar:
            for block in response.raw.stream(BLOCK, decode_content=False):
                file.write(block)
                bar.update(len(block))
        for answer in (*response.history, response):        # the Hub announces it before it redirects to the storage
            found = re.search(r"\b[0-9a-f]{64}\b", answer.headers.get("X-Linked-ETag", ""))
            if found:
                return found[0]
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if "timed out" in text:
        return "no answer in time"
    return "the connection was cut" if "broken" in text or "incomplete" in text else f"no connection, {type(error).__name__}"
