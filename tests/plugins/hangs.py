"""Never ends by itself."""

import time

print("hanging", flush=True)
while True:
    time.sleep(60)
