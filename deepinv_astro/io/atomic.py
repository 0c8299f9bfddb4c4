"""Files that appear whole or not at all, and never in place of another by accident."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """
    The path of a file that is not there, or may be replaced; nothing is made.

    :param path: the file.
    :param bool overwrite: whether an existing file may be replaced.
    :return: the path.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises IsADirectoryError: if it is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists and was left as it is; to replace it pass `overwrite=True`, "
            "or choose another name"
        )
    return path


def check_writable(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """
    The path of a file that may be written; its folder is made if needed.

    :param path: the file.
    :param bool overwrite: whether an existing file may be replaced.
    :return: the path.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises OSError: if it is a folder, or its folder cannot be made or written.
    """
    path = check_free(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot make the folder {path.parent}: {error.strerror}") from error
    return path


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """
    A temporary file beside the target, which takes its place when the block ends well.

    If the block raises or is interrupted, the temporary file is removed and the target is as
    before. The temporary name keeps the suffix, so that writers which look at it work.

    :param path: the file to write.
    :param bool overwrite: whether an existing file may be replaced.
    :return: context manager of the temporary path, an empty file to be overwritten.
    :raises FileExistsError: if the file exists and ``overwrite`` is False.
    :raises OSError: if the folder cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "new" / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print((Path(folder) / "new" / "a.txt").read_text())
    whole
    """
    target = check_writable(path, overwrite)
    temporary = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise type(error)(
            f"cannot write in the folder {target.parent}: {error.strerror}; "
            "change its mode or choose another folder"
        ) from error
    try:
        yield temporary
        # Someone may have written the target in the meantime.
        check_writable(target, overwrite)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
