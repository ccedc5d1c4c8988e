"""Builds the documentation site: what mkdocs needs beside the pages in `docs/`."""
