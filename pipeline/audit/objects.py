"""The objects' places as an audit opens them: once, for all of its workers, with a stamp of what they are."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.audit.regions import open_regions
from pipeline.audit.regions.base import RegionSource
from pipeline.lake import Lake
from pipeline.sources.storage import etag, open_fs, protocol_of, storage_errors
from schemas.audit import Settings
from schemas.errors import InputError
from schemas.redact import holds_credentials


@dataclass(frozen=True)
class Objects:
    """Where objects are.

    Attributes:
        source: knows the regions; None: nothing is known of them.
        about: the same in words.
        stamp: another one where the regions are others, as far as a look at the file tells. A folder's is its name.
    """

    source: RegionSource | None = None
    about: str | None = None
    stamp: tuple[str, ...] = ()


def open_objects(settings: Settings, lake: Lake) -> Objects:
    """Open what the settings name. Options of the lake's file system hold where it is of one kind.

    Workers must not do this themselves: it depends on the images that it looks at, and a worker sees some only.

    Raises:
        InputError: the column, file or folder is not there, or cannot be read.
    """
    uri = settings.boxes or settings.masks
    if uri is None:
        return Objects()
    if holds_credentials(uri):
        field = "--boxes" if settings.boxes else "--masks"
        raise InputError(f"{field}: the URI is written with credentials in it; give them in the environment")
    same = protocol_of(uri) == protocol_of(lake.store.uri)
    options = lake.store.storage_options if same else None
    source = open_regions(settings, lake, options)
    if source is None:
        return Objects()
    stamp = [source.about(), f"any_class={source.any_class}"]
    if uri not in lake.manifest.attributes and uri.lower().endswith(".json"):
        fs, path = open_fs(uri, options, field="--boxes")
        with storage_errors(uri, "--boxes"):
            stamp.append(str(etag(fs.info(path))))
    return Objects(source, source.about(), tuple(stamp))
