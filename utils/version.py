"""The version of this project, as in pyproject.toml."""

VERSION = "0.1.0"
