#!/bin/bash
set -e
python3 - <<'END'
import json, struct

data = open("/root/data/frames.bin", "rb").read()
found, at = {}, 0
while at <= len(data) - 7:
    check = 0
    for byte in data[at + 1 : at + 6]:
        check ^= byte
    if data[at] != 0xA5 or check != data[at + 6]:
        at += 1
        continue
    sensor, number, value = struct.unpack("<BHh", data[at + 1 : at + 6])
    found.setdefault(sensor, {})[number] = value
    at += 7
summary = {
    str(sensor): {"count": len(values), "mean": round(sum(values.values()) / len(values) / 10, 3)}
    for sensor, values in found.items()
}
json.dump(summary, open("/root/summary.json", "w"))
END
