"""Contracts with a version: the job file, the tables, the documents and the lake's layout.

The ground floor of the project: it imports nothing of ours, only pydantic and pyarrow.
"""
