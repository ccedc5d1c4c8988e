"""What the router routes calls to. The packages here do not import each other."""
