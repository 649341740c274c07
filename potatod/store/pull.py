"""`potatod pull`: a model at the hub becomes a model folder while it is downloaded, file by file.

    what it consists of, heads ─▶ terms, agreed to ─▶ a file comes ─▶ its shards ─▶ the file goes

The disk holds the folder and the source's files that are open at once. Killed at any point it goes on when it is run again: shards that are made are
not made anew (journal.py), what has come of a file is kept (hub_files.py), and only files that unfinished shards need are downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from potatod.dtypes import KEEP
from potatod.errors import UsageError

from . import staging
from .fetched import Fetched, Terms
from .hub_files import Repository
from .hub_source import locate, open_at_hub
from .identity import key_at_hub
from .journal import check_place, finished
from .prepare import Progress, make
from .storing import wish

Agree = Callable[[Repository, Terms, Path], None]


def pull(
    model_id: str,
    out: Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    force: bool = False,
    agree: Agree = lambda _repository, _terms, _config: None,
    progress: Callable[[Progress, Fetched], None] = lambda _progress, _supply: None,
    notice: Callable[[str], None] = lambda _: None,
    band_bytes: int | None = None,
) -> bool:
    """Makes the model folder ``out``; False where it is there already, of the same commit and options.

    ``agree`` is told the terms and the path of the config, once, before weights are downloaded; where it raises no trace stays. Raises as
    :func:`prepare.prepare`, and NoSuchModel or Unavailable where the hub does not give it.
    """
    if wish(dtype).scheme == KEEP:
        raise UsageError(f'dtype "keep" looks at all weights first: download the whole with `potatod prepare {model_id} {out} --dtype keep`')
    check_place(out)
    with staging.held(out) as folder:
        repository = locate(folder, model_id, revision)
        key = key_at_hub(model_id, repository.commit, dtype, band_bytes)
        if finished(out, key, force) is not None:
            staging.remove(folder)
            return False
        source = open_at_hub(repository, folder)
        said = [Progress(0, 0, 0, 0, 0)]

        def agreed(terms: Terms) -> None:
            page = staging.remembered(folder)
            if page.get("agreed") != key:
                agree(repository, terms, folder / "config.json")
                staging.remember(folder, page | {"agreed": key})

        def tell(now: Progress) -> None:
            said[0] = now
            progress(now, supply)

        with Fetched(repository, folder, source, agreed, lambda: progress(said[0], supply)) as supply:
            origin = {"source": model_id, "revision": repository.commit, "dtype": dtype}
            make(
                source, out, key, dtype, force=force, progress=tell, notice=notice, band_bytes=band_bytes, supply=supply, origin=origin
            )  # fmt: skip
        staging.remove(folder)
    return True
