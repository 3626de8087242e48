"""Exports of a lake, or of an audit, for other tools: by file, so that none of them is imported here."""

from pipeline.audit.exports.run import DEFAULT_IMAGES, Exported, export

__all__ = ["DEFAULT_IMAGES", "Exported", "export"]
