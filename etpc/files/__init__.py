"""What is written: files and folders that are whole or not there, and records for JSON."""

from .record import schema

__all__ = ["schema"]
