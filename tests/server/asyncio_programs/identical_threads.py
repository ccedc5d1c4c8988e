import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tools.jittery import fetch, flaky, record

written = []


def ask(n):
    """Ask what all the others ask, as soon as they do or a little later."""
    time.sleep(random.uniform(0, 0.01))
    found = [fetch(item="the same").serial for _ in range(2)]
    try:
        found.append(flaky(item="the same").serial)
    except Exception as exc:  # noqa: BLE001 - the upstream fails at random
        found.append(str(exc))
    item = f"{TAG}:{n}:{found}"
    record(item=item)
    written.append(item)
    return found


with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(ask, range(8)))
threads = [threading.Thread(target=ask, args=(f"t{n}",)) for n in range(4)]
for thread in threads:
    thread.start()
answers.append(fetch(item="the same").serial)
for thread in threads:
    thread.join()
written.sort()
result = {"written": written, "answers": answers}
