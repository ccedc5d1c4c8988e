"""Recorded runs in forms that other programs read: notebooks, HTML files and CSV tables.

Everything in a recording is hostile: nothing that it holds may act in the program that opens it.
"""
