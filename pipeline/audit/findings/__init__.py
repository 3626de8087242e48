"""Findings: each kind is one file that turns the audit's state into statements."""
