"""Reads frames from a noisy capture."""

import struct
from functools import reduce
from operator import xor

SIZE = 7


def read_frames(data):
    """Yield sensor, number and value of each valid frame, repeated ones once."""
    seen, at = set(), 0
    while at + SIZE <= len(data):
        body = data[at + 1 : at + 6]
        if data[at] == 0xA5 and reduce(xor, body) == data[at + 6]:
            sensor, number, value = struct.unpack("<BHh", body)
            if (sensor, number) not in seen:
                seen.add((sensor, number))
                yield sensor, number, value
            at += SIZE
        else:
            at += 1
