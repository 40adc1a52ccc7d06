"""The version of this project, which pyproject.toml and the site read."""

VERSION = "0.1.0"
