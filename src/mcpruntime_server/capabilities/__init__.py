"""The handlers of the calls that code makes. The packages here do not import each other."""
